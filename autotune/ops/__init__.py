"""One module an operator. Importing the package registers every operator, and its knobs, without torch."""

from autotune.ops import all_reduce, all_to_all, embedding_bag, interaction, loss, mlp, optimizer, overhead, sharded

__all__ = ["all_reduce", "all_to_all", "embedding_bag", "interaction", "loss", "mlp", "optimizer", "overhead", "sharded"]
