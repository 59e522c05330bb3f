"""What commands share."""

from typing import Annotated

from cyclopts import Parameter

__all__ = ["Json"]

Json = Annotated[bool, Parameter(negative="", help="Print the result as JSON on stdout.")]
