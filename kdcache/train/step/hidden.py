"""A student's last hidden states and output layer in place of its logits.

For students that are made like Hugging Face's language models: ``base_model`` gives
``last_hidden_state``, ``get_output_embeddings()`` the layer that makes logits of it. Nothing of
transformers is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kdcache.errors import DataError, UsageError
from kdcache.outputs import DeferredLogits, read_output

_TOLERANCE = 1e-3


class HiddenHead:
    """Calls a student for its hidden states; checked once against the logits it gives itself.

    Args:
        student: the model; one that returns :class:`~kdcache.outputs.DeferredLogits` by itself is
            called as it is.

    Raises:
        UsageError: at the first call, where the student has no such parts, does more with its
            hidden states than its output layer says (or has parameters that might), or returns
            losses of its own.
    """

    def __init__(self, student: nn.Module) -> None:
        self._student = student
        self._defers_itself = False
        self._is_checked = False

    def __call__(self, *args: Any, **kwargs: Any) -> DeferredLogits | Any:
        """The student's logits, not computed yet."""
        if not self._is_checked:
            self._check(args, kwargs)
            self._is_checked = True
        return self._student(*args, **kwargs) if self._defers_itself else self._run(args, kwargs)

    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> DeferredLogits:
        student: Any = self._student
        layer = student.get_output_embeddings()
        config = getattr(student, "config", None)
        # Hugging Face's configs name what lies between the layer's output and the logits: a factor,
        # a divisor, a bound.
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        return DeferredLogits(
            hidden=student.base_model(*args, **kwargs).last_hidden_state,
            weight=layer.weight,
            bias=getattr(layer, "bias", None),
            scale=scale / float(getattr(config, "logits_scaling", None) or 1.0),
            softcap=getattr(config, "final_logit_softcapping", None),
        )

    @torch.no_grad()
    def _check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Hold the logits of one sample against the student's own, without dropout."""
        name = type(self._student).__name__
        # One sample: logits of a whole batch are what this head is there to avoid.
        few, named = pytree.tree_map_only(Tensor, _first_row, (args, dict(kwargs)))
        training = [module for module in self._student.modules() if module.training]
        self._student.eval()
        try:
            output = read_output(self._student(*few, **named))
            own = output.logits
            if isinstance(own, DeferredLogits):
                self._defers_itself = True
                return
            deferred = self._run(few, named)
            found = deferred.logits()
        except (AttributeError, TypeError, DataError) as error:
            raise UsageError(
                f"distill.head: hidden needs a student with base_model(...).last_hidden_state and "
                f"get_output_embeddings(), or one that returns kdcache.outputs.DeferredLogits; "
                f"{name} is not one ({error}). Use head: logits."
            ) from error
        finally:
            # Not student.train(): what the user keeps in eval mode, a frozen part, stays there.
            for module in training:
                module.training = True
        difference = (found.float() - own.float()).abs().max() if found.shape == own.shape else None
        if difference is None or not difference <= _TOLERANCE * (1 + own.float().abs().max()):
            what = "another shape" if difference is None else f"they differ by {difference:.3g}"
            raise UsageError(
                f"the logits of {name} are not its hidden states times its output layer ({what}): "
                "it does more between the two. Use distill.head: logits, or return "
                "kdcache.outputs.DeferredLogits from the student."
            )
        if output.losses:
            raise UsageError(
                f"{name} returns losses of its own ({', '.join(output.losses)}), which its hidden "
                "states alone do not make. Use distill.head: logits; or return "
                "kdcache.outputs.DeferredLogits beside them; or, where they come from labels among "
                "its inputs, leave these out (batch.inputs)."
            )
        self._check_parameters(deferred)

    def _check_parameters(self, deferred: DeferredLogits) -> None:
        """Refuse what may be added to the logits later, such as adapters that begin with 0."""
        student: Any = self._student
        used = {id(parameter) for parameter in student.base_model.parameters()}
        used |= {id(deferred.weight), id(deferred.bias)}
        unused = [n for n, p in student.named_parameters() if p.requires_grad and id(p) not in used]
        if unused:
            raise UsageError(
                f"distill.head: hidden would not train {unused[0]!r} of "
                f"{type(student).__name__}, the first of {len(unused)} parameters that are neither "
                "of its base_model nor weight or bias of its output layer. Use head: logits."
            )


def _first_row(tensor: Tensor) -> Tensor:
    return tensor[:1] if tensor.dim() else tensor
