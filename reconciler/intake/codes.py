"""The code of every diagnostic that reading an estate may give, each with what it stands for.

``HF1xx`` syntax, ``HF2xx`` schema, ``HF3xx`` references, ``HF4xx`` semantics. A code keeps its meaning for ever, so
that tools may filter by it; texts may change. Separate from the checks, so that the list can be read in one place.
"""

from __future__ import annotations

from typing import Final

UNREADABLE: Final = "HF100"
NOT_TEXT: Final = "HF101"
NOT_YAML: Final = "HF102"
DUPLICATE_KEY: Final = "HF103"
BAD_KEY: Final = "HF104"
FLOAT: Final = "HF105"
BAD_SCALAR: Final = "HF106"
BAD_ALIAS: Final = "HF107"
TOO_DEEP: Final = "HF108"
TOO_LARGE: Final = "HF109"

NOT_OBJECT: Final = "HF200"
UNKNOWN_KIND: Final = "HF201"
UNKNOWN_VERSION: Final = "HF202"
MISSING_FIELD: Final = "HF203"
UNKNOWN_FIELD: Final = "HF204"
WRONG_TYPE: Final = "HF205"
WRONG_WORD: Final = "HF206"
MALFORMED: Final = "HF207"
OUT_OF_RANGE: Final = "HF208"

NO_MANIFESTS: Final = "HF300"
DUPLICATE_OBJECT: Final = "HF301"
DANGLING: Final = "HF302"
AMBIGUOUS_STORAGE: Final = "HF303"
DUPLICATE_NAME: Final = "HF304"
SOURCE_CYCLE: Final = "HF305"
BACKUP_COUNT: Final = "HF306"
SOURCE_MISPLACED: Final = "HF307"
PREVIOUS_NAME: Final = "HF308"

EMPTY_KEEP: Final = "HF401"
LEAF_EXPIRES_AFTER_COPY: Final = "HF402"
RETENTION_TOO_SHORT: Final = "HF403"
CHAIN_WITHOUT_FULL: Final = "HF404"
SERIES_WITHOUT_FULL: Final = "HF405"
CRON_OR_EVERY: Final = "HF406"
BAD_CRON: Final = "HF407"
ZERO_DURATION: Final = "HF408"
IMPOSSIBLE_WINDOW: Final = "HF409"
MISPLACED_FULL_EVERY: Final = "HF410"
WATER_MARKS: Final = "HF411"
POOL_SETTING: Final = "HF412"
SHARED_FAILURE_DOMAIN: Final = "HF413"
OVERLAPPING_PATHS: Final = "HF414"
SHARED_POOL: Final = "HF415"
IMPOSSIBLE_GLOB: Final = "HF416"
UNREACHED_UNIT: Final = "HF417"
APPROVAL_EXPIRED: Final = "HF418"
EMPTY_HOLD: Final = "HF420"
IMPOSSIBLE_SPAN: Final = "HF421"
RELEASED_LATER: Final = "HF422"
SOURCE_CHOICE: Final = "HF423"
VCENTER_SETTING: Final = "HF424"
MACHINE_DISK: Final = "HF425"
CATALOG_SETTING: Final = "HF430"
RESTORE_SETTING: Final = "HF426"
SERVICE_LEVEL: Final = "HF427"
PROMISE_BROKEN: Final = "HF428"

#: Code -> what it stands for, in a few words.
MEANINGS: Final[dict[str, str]] = {
    UNREADABLE: "a file or folder cannot be read",
    NOT_TEXT: "a file is not plain UTF-8 text",
    NOT_YAML: "the text is not YAML",
    DUPLICATE_KEY: "a key stands twice in one mapping",
    BAD_KEY: "a key that is not text, or a merge key",
    FLOAT: "a number with a fraction",
    BAD_SCALAR: "a value that manifests do not know",
    BAD_ALIAS: "an alias without its anchor, within itself, or that expands too far",
    TOO_DEEP: "too many levels of nesting",
    TOO_LARGE: "the file is too large",
    NOT_OBJECT: "a document is not an object",
    UNKNOWN_KIND: "the kind is missing or unknown",
    UNKNOWN_VERSION: "the apiVersion is missing or unknown",
    MISSING_FIELD: "a required field is missing",
    UNKNOWN_FIELD: "a field is unknown",
    WRONG_TYPE: "a value of the wrong type",
    WRONG_WORD: "a word that is not one of those allowed",
    MALFORMED: "a value is spelled wrongly",
    OUT_OF_RANGE: "a value is too small, too large, too short or too long",
    NO_MANIFESTS: "the estate holds no manifests",
    DUPLICATE_OBJECT: "two objects have the same kind and name",
    DANGLING: "a name that nothing has",
    AMBIGUOUS_STORAGE: "a unit and a group have the same name",
    DUPLICATE_NAME: "a name stands twice in one list",
    SOURCE_CYCLE: "operations copy from each other in a circle",
    BACKUP_COUNT: "a lifecycle has not exactly one Backup operation",
    SOURCE_MISPLACED: "a Duplication lacks its source, or a Backup has one",
    PREVIOUS_NAME: "a previous name is in use or claimed twice",
    EMPTY_KEEP: "a Keep rule keeps nothing",
    LEAF_EXPIRES_AFTER_COPY: "ExpireAfterCopy on an operation that nothing copies",
    RETENTION_TOO_SHORT: "copies expire before the next backup",
    CHAIN_WITHOUT_FULL: "a schedule filter sends incrementals to a chain unit without their full",
    SERIES_WITHOUT_FULL: "a series without a full onto a chain unit",
    CRON_OR_EVERY: "a schedule has both cron and every, or neither",
    BAD_CRON: "a cron expression is wrong",
    ZERO_DURATION: "a duration of nothing",
    IMPOSSIBLE_WINDOW: "a window that cannot be",
    MISPLACED_FULL_EVERY: "fullEvery on a schedule that is not Incremental",
    WATER_MARKS: "the low water mark is not below the high one",
    POOL_SETTING: "a setting of pools on another unit, or a segment size that is not allowed",
    SHARED_FAILURE_DOMAIN: "two copies share a failure domain",
    OVERLAPPING_PATHS: "two units or holding areas use the same or nested folders",
    SHARED_POOL: "several media servers reach one pool",
    IMPOSSIBLE_GLOB: "a pattern that matches nothing",
    UNREACHED_UNIT: "no media server reaches a unit",
    APPROVAL_EXPIRED: "an Approval that has run out",
    EMPTY_HOLD: "a LegalHold that names nothing",
    IMPOSSIBLE_SPAN: "a span of time that ends before it begins",
    RELEASED_LATER: "a release that lies in the future",
    SOURCE_CHOICE: "a policy has no source, or several, or settings of another one",
    VCENTER_SETTING: "settings of a VCenter that contradict each other or lack something",
    MACHINE_DISK: "a disk of a virtual machine that is to be read and left out at once",
    CATALOG_SETTING: "a setting that means nothing for a policy whose source is the catalog",
    RESTORE_SETTING: "settings of a Restore that contradict each other or lack something",
    SERVICE_LEVEL: "a ServiceLevel that promises nothing, or selects nothing",
    PROMISE_BROKEN: "a ServiceLevel promises what a policy cannot keep",
}
