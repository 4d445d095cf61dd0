"""Of the site only: links to files outside of docs/ lead to the repository."""

from __future__ import annotations

REPOSITORY = "https://github.com/crossalign/crossalign/blob/main/"


def on_page_markdown(markdown: str, **_: object) -> str:
    return markdown.replace("](../", f"]({REPOSITORY}")
