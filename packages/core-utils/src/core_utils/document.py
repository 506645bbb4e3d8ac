"""One page for what a job found, in the style of the report of claims: sentences, tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core_utils.errors import UserError
from core_utils.page import PICTURE_LIMIT, anchor, data_uri, rendered


@dataclass(frozen=True)
class Picture:
    """A picture with its caption.

    Attributes:
        caption: what it shows; also read aloud.
        content: the file.
        suffix: ".png" or ".svg".
    """

    caption: str
    content: bytes
    suffix: str

    @property
    def uri(self) -> str:
        """Its content as an address."""
        if len(self.content) > PICTURE_LIMIT:
            raise UserError(f"the picture {self.caption!r} has {len(self.content)} bytes, more than {PICTURE_LIMIT}")
        return data_uri(self.suffix, self.content)


@dataclass(frozen=True)
class Section:
    """A part of a document.

    Attributes:
        title: its heading.
        texts: paragraphs.
        rows: of a table, the first one its heads; none for no table.
        words: whether the table's cells are words, which align left, not figures.
        pictures: below the table.
    """

    title: str
    texts: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    words: bool = False
    pictures: Sequence[Picture] = ()


def document(title: str, lead: str, sections: Sequence[Section], environment: Mapping[str, Any]) -> str:
    """The page as HTML that needs nothing else: no network, no script, every text escaped.

    Args:
        title: the heading.
        lead: what the reader must know first.
        sections: in order.
        environment: as `runs.environment` gives it.

    Raises:
        UserError: jinja2 is not installed, or a picture is larger than a page may hold.
    """
    values = {"title": title, "lead": lead, "sections": sections, "environment": environment}
    return rendered("document.html.jinja", {}, {"anchor": anchor}, **values)
