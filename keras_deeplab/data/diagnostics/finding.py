"""What a diagnosis finds."""

from __future__ import annotations

from dataclasses import dataclass

SHOWN_EXAMPLES = 3


@dataclass(frozen=True)
class Finding:
    """A probable mistake in a data set, or a note on what fits it.

    Attributes:
        kind: A short name, such as `"labels resized bilinearly"`.
        text: What was seen, with numbers.
        advice: What to do.
        confidence: 0..1; findings from 0.8 on are reported as warnings, others as notes.
        examples: Names of images, values or colours.
    """

    kind: str
    text: str
    advice: str
    confidence: float
    examples: tuple[str, ...] = ()

    @property
    def is_warning(self) -> bool:
        """Whether it is probably a mistake."""
        return self.confidence >= 0.8

    def __str__(self) -> str:
        """Returns one line: kind, text, examples and advice."""
        shown = ", ".join(self.examples[:SHOWN_EXAMPLES])
        more = ", ..." * (len(self.examples) > SHOWN_EXAMPLES)
        examples = f" ({shown}{more})" if shown else ""
        return f"{self.kind}: {self.text}{examples}. {self.advice}"

    def to_dict(self) -> dict[str, object]:
        """Returns a dict for `json.dump`."""
        return {**vars(self), "examples": list(self.examples)}
