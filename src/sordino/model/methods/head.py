"""Head only: the language-model head is tuned, the rest of the model is a fixed feature extractor."""

from typing import Any

from sordino.model.methods.replaced import Replaced

__all__ = ["attach_head"]


def attach_head(module: Any) -> Replaced:
    """The head's parameters, untied from the embedding where they were one tensor."""
    head = module.get_output_embeddings()
    [place] = [name for name, found in module.named_modules() if found is head]
    replaced = Replaced(module, [f"{place}.{leaf}" for leaf, _ in head.named_parameters()])
    # Else whoever saves or resizes the model would tie them again.
    module.config.tie_word_embeddings = False
    return replaced
