"""Quantised models: what a recipe or a checkpoint asks for, and whether it can be had."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any, Final

from transformers import PreTrainedConfig
from transformers.quantizers.auto import AutoHfQuantizer, AutoQuantizationConfig

from vlsi_cache.errors import ModelError, first_line

__all__ = [
    "quantization_from",
    "quantization_of",
    "validate_not_quantised",
    "validate_quantization",
]

_PACKAGES: Final = {
    "aqlm": "aqlm[cpu,gpu]",
    "auto-round": "auto-round",
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "eetq": "kernels",
    "fbgemm_fp8": "kernels",
    "fp8": "kernels",
    "gptq": "optimum gptqmodel",
    "higgs": "flute-kernel",
    "hqq": "hqq",
    "mxfp4": "kernels triton",
    "quanto": "optimum-quanto",
    "torchao": "torchao",
    "vptq": "vptq",
}
"""Method → what pip installs for it. Others need nothing, or name it in transformers' own error."""

_BITSANDBYTES: Final = ("load_in_4bit", "load_in_8bit")
_TORCHAO: Final = "torchao"


def quantization_of(config: PreTrainedConfig) -> dict[str, Any]:
    """Return how a checkpoint is quantised, as JSON values. Empty if it is not."""
    found: Any = None
    for one in (config, config.get_text_config(decoder=True)):
        found = found or getattr(one, "quantization_config", None)
    if found is None:
        return {}
    fields = found if isinstance(found, dict) else found.to_dict()
    plain: dict[str, Any] = json.loads(json.dumps(fields, default=_name))
    return plain


def quantization_from(options: Mapping[str, Any]) -> Any:
    """Return transformers' configuration of a quantisation on loading.

    Args:
        options: the recipe's ``teacher.quantization``.

    Raises:
        ModelError: the method or an option is unknown, or its package is not installed.
    """
    method = _method(options)
    try:
        found = _torchao(options) if method == _TORCHAO else _auto(options)
    except (ImportError, ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        raise _refused(method, error) from error
    unknown = sorted(name for name in options if not hasattr(found, name))
    if unknown:
        raise ModelError(
            "the quantisation has unknown options",
            where="teacher.quantization",
            expected=f"options of {type(found).__name__}",
            found=", ".join(unknown),
        )
    return found


def validate_quantization(config: PreTrainedConfig, options: Mapping[str, Any]) -> None:
    """Refuse a quantisation that this environment cannot have, before weights are read.

    Args:
        config: the checkpoint's configuration.
        options: the recipe's ``teacher.quantization``.

    Raises:
        ModelError: the checkpoint is quantised already, a package is not installed, or the method
            does not run here.
    """
    own = quantization_of(config)
    if own and options:
        raise ModelError(
            "the checkpoint is quantised already",
            where="teacher.quantization",
            found=f"quantization_config with quant_method {own.get('quant_method')}",
            mend="Leave teacher.quantization out",
        )
    if not own and not options:
        return
    try:
        wanted = AutoQuantizationConfig.from_dict(own) if own else quantization_from(options)
        quantizer = AutoHfQuantizer.from_config(wanted, pre_quantized=bool(own))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again when the weights are read
            quantizer.validate_environment(device_map=None, weights_only=True)
    except ModelError:
        raise
    except Exception as error:
        # Any error, because each method's package checks in its own way.
        raise _refused(_method(own or options), error) from error


def validate_not_quantised(config: PreTrainedConfig, name: str) -> None:
    """Refuse a quantised checkpoint as a student.

    Args:
        config: the checkpoint's configuration.
        name: the model.

    Raises:
        ModelError: the checkpoint is quantised.
    """
    fields = quantization_of(config)
    if fields:
        raise ModelError(
            "a quantised student cannot be trained",
            where=name,
            expected="weights in float32, bfloat16 or float16",
            found=f"quantization_config with quant_method {fields.get('quant_method')}",
            mend="Give the checkpoint that it was quantised from. The teacher may be quantised",
        )


def _method(options: Mapping[str, Any]) -> str:
    if any(options.get(name) for name in _BITSANDBYTES):
        return "bitsandbytes"
    method = options.get("quant_method")
    return str(getattr(method, "value", method))


def _auto(options: Mapping[str, Any]) -> Any:
    return AutoQuantizationConfig.from_dict(dict(options))


def _torchao(options: Mapping[str, Any]) -> Any:
    """Build torchao's configuration from a class by name, or from a name with its options."""
    from torchao import quantization  # optional
    from transformers import TorchAoConfig

    kind = options["quant_type"]
    if isinstance(kind, str):
        kind = {kind: {}}
    if isinstance(kind, Mapping) and "default" in kind:
        return _auto(options)
    ((name, settings),) = kind.items()
    rest = {key: options[key] for key in options.keys() - {"quant_method", "quant_type"}}
    return TorchAoConfig(getattr(quantization, name)(**(settings or {})), **rest)


def _refused(method: str, error: Exception) -> ModelError:
    package = _PACKAGES.get(method)
    absent = isinstance(error, ImportError) or "install" in str(error)
    return ModelError(
        "the quantisation cannot be had on this machine",
        where=f"quantisation {method}",
        found=first_line(error),
        mend=f"pip install {package}" if package is not None and absent else None,
    )


def _name(value: Any) -> str:
    return str(getattr(value, "value", value)).removeprefix("torch.")
