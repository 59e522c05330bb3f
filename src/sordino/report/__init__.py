"""What an audit found, for people: a page to hand on and a table for the terminal."""

from sordino.report.beside import beside_table, sides, write_beside
from sordino.report.html import Excerpt, mask, render_html
from sordino.report.person import render_person
from sordino.report.terminal import render_prompts, render_table
from sordino.report.write import write_report

__all__ = [
    "Excerpt",
    "beside_table",
    "mask",
    "render_html",
    "render_person",
    "render_prompts",
    "render_table",
    "sides",
    "write_beside",
    "write_report",
]
