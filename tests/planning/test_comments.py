"""The plan as a pull request's comment: whole where it fits, cut at its lists where it does not, never misread."""

from __future__ import annotations

from typing import Any

import planning_samples as samples
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.api.documents import plans
from reconciler.planning import planfile, planner
from reconciler.reports import comments, markup


def shortened(clients: int) -> plans.Plan:
    """A plan of many machines whose retention a revision shortens from thirty days to seven."""
    old, new = ({"type": "Fixed", "period": period} for period in ("30d", "7d"))
    before, after = (
        samples.estate(
            samples.pool("deep"),
            samples.lifecycle("gold", samples.operation("land", "deep", retention=rule)),
            samples.policy("gold", {"name": "daily", "type": "Full", "every": "24h"}),
            revision=f"dir@blake3:{rule['period']}",
        )
        for rule in (old, new)
    )
    spec = before.lifecycles["gold"].spec
    names = [f"diskimages:/srv/guests/vm{number}" for number in range(clients)]
    found = [
        samples.series(
            *(
                samples.image(
                    age, samples.ago(days=20 - age), samples.copy(unit="deep"), spec=spec, id=f"{number}-{age}"
                )
                for age in range(1, 20, 4)
            ),
            client=name,
        )
        for number, name in enumerate(names)
    ]
    machines = tuple(samples.machine(name) for name in names)
    seen = samples.seen(before, *found, machines=machines)
    return planfile.document(planner.plan(after, seen, samples.NOW))


def test_a_reviewer_sees_first_what_would_be_destroyed() -> None:
    plan = shortened(3)
    text = comments.markdown(plan)
    assert text.startswith(markup.MARKER + "\n## Holdfast plan for `dir@blake3:7d`\n")
    assert f"**Destroys {plan.destruction.copies} copies" in text.splitlines()[3]
    assert text.index("### Would be destroyed") < text.index("### Configuration (1)") < text.index("<details>")
    assert f"Digest `{plan.destruction.digest}`" in text
    for item in plan.destruction.items:
        assert f"`{item.image}` copy {item.copy_number} on deep" in text
    for client in plan.destruction.clients:
        assert f"- {client.client}: oldest restore point" in text


@settings(max_examples=40, deadline=None)
@given(clients=st.integers(1, 40), most=st.integers(markup.SMALLEST, 30_000))
def test_a_comment_is_never_longer_than_it_may_be(clients: int, most: int) -> None:
    plan = shortened(clients)
    text = comments.markdown(plan, most)
    whole = comments.markdown(plan, 1 << 30)
    held = f"**Destroys {plan.destruction.copies} copies"
    assert held in text
    assert text.count("<details>") == text.count("</details>")
    if len(whole.encode()) <= most:
        assert text == whole
    else:
        assert len(text.encode()) <= most
        assert "more: `holdfast plan -v`" in text


@given(text=st.text(max_size=60))
def test_names_are_shown_and_never_read_as_markup(text: str) -> None:
    span = markup.code(text)
    fence = span[: len(span) - len(span.lstrip("`"))]
    inner = span[len(fence) : len(span) - len(fence)]
    assert fence not in inner.replace("`" * (len(fence) + 1), "")
    assert "\n" not in span
    plain: Any = markup.plain(text)
    assert "\n" not in plain
    assert "<" not in plain.replace("\\<", "")
    assert "|" not in plain.replace("\\|", "")
