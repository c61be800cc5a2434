"""What an error message must hold: the value at fault, and an instruction, in sentences that end once."""

from __future__ import annotations

import re

VERBS = (
    "add|allow|ask|build|call|change|check|choose|close|commit|copy|decode|delete|download|draw|drop"
    "|export|free|give|go|install|leave|let|load|lower|make|mend|move|name|open|pass|pick|pin|point|put"
    "|raise|re-evaluate|report|remove|rename|repair|restore|run|save|say|set|start|stop|take|train|turn|upgrade"
    "|use|wait|write"
)


def has_remedy(message: str) -> bool:
    """True where a sentence or clause begins with an instruction, and none ends in two full stops."""
    found = re.search(rf"(^|[.;:,)] |or )({VERBS})\b", message, re.IGNORECASE) is not None
    return found and not re.search(r"(?<!\.)\.\.(?!\S)", message)
