"""A fixed slice of the damage that ``hack/fuzz-guests`` does."""

from __future__ import annotations

import guest_builders as builders
import guest_fuzz
import pytest

pytestmark = builders.needs_root


def test_damage_costs_no_more_than_the_guest(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = guest_fuzz.seeds(tmp_path_factory.mktemp("seeds"))
    for data in made.values():
        guest_fuzz.check(data)
    for _, _, make in guest_fuzz.rounds(made, 0, 24):
        guest_fuzz.check(make())
