"""Measurement predictors: a language model with a linear probe at each sensor token, from a published checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from causalmad.errors import TaskError
from causalmad.tasks.loading import folder_of

_FILES = ("*.json", "*.safetensors", "*.txt")


class MeasurementPredictor(nn.Module):
    """A language model that predicts whether each sensor of a text passes, and whether all of them do.

    The parameters have the names of the published checkpoints: the language model under ``transformer`` (CodeGen) or
    ``gpt_neox`` (Pythia), ``sensor_probes.0`` and so on, each (1, width), and ``aggregate_probe``. Probes read the last
    hidden state: sensor i's at the i-th sensor token, the aggregate's at the last sensor token or at the last token.
    """

    def __init__(self, backbone: nn.Module, stem: str, token: int, sensors: int, aggregate: bool, last: bool) -> None:
        """Wrap a language model; the probes are fresh.

        Args:
            backbone: gives ``last_hidden_state``.
            stem: the name under which it stands.
            token: id of the sensor token.
            sensors: how many such tokens a text has.
            aggregate: whether there is a probe for all sensors together.
            last: whether it reads the last token, and not the last sensor token.
        """
        super().__init__()
        config: Any = backbone.config
        self.config, self.stem, self.token, self.last = config, stem, token, last
        self.add_module(stem, backbone)
        self.sensor_probes = nn.ModuleList(nn.Linear(config.hidden_size, 1) for _ in range(sensors))
        self.aggregate_probe = nn.Linear(config.hidden_size, 1) if aggregate else None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        sensors: Tensor | None = None,
    ) -> Tensor:
        """(batch, 1) log-odds that all sensors pass: the aggregate probe's, without it those of independent sensors."""
        every = self.measurements(input_ids, attention_mask, position_ids, sensors)
        if self.aggregate_probe is not None:
            return every[:, -1:]
        passes = nn.functional.logsigmoid(every).sum(-1, keepdim=True)
        return passes - torch.log(-torch.expm1(passes))

    def measurements(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        sensors: Tensor | None = None,
    ) -> Tensor:
        """(batch, sensors), and one more with an aggregate probe: log-odds that each passes.

        Args:
            input_ids: (batch, positions) tokens.
            attention_mask: 1 at real tokens.
            position_ids: passed on.
            sensors: (batch, sensors) which of a text's real tokens the probes read, counted from 0: for texts some of
                whose tokens were exchanged. By default the sensor tokens.

        Raises:
            ValueError: without ``sensors``, when a text has another number of sensor tokens.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if sensors is None:
            found, count = (input_ids == self.token) & mask.bool(), len(self.sensor_probes)
            if not bool((found.sum(-1) == count).all()):
                raise ValueError(f"{sorted(set(found.sum(-1).tolist()))} sensor tokens in a text instead of {count}")
            places = found.nonzero()[:, 1].reshape(-1, count)
        else:
            places = sensors + mask.argmax(-1, keepdim=True)
        backbone = getattr(self, self.stem)
        given = {"input_ids": input_ids, "attention_mask": mask, "position_ids": position_ids}
        hidden = backbone(**given, use_cache=False).last_hidden_state
        rows = torch.arange(len(input_ids), device=input_ids.device)
        logits = [probe(hidden[rows, places[:, i]]) for i, probe in enumerate(self.sensor_probes)]
        if self.aggregate_probe is not None:
            steps = torch.arange(mask.shape[1], device=mask.device)
            end = (mask * steps).argmax(-1) if self.last else places[:, -1]
            logits.append(self.aggregate_probe(hidden[rows, end]))
        return torch.cat(logits, -1)


def load_predictor(name: str, tokenizer: str = "") -> tuple[MeasurementPredictor, Callable[..., Any]]:
    """A published measurement predictor and its tokenizer; its own code is not run.

    Args:
        name: a folder or hub name with ``config.json`` (``model_type`` such as ``codegen_mp``, ``n_sensors``,
            ``sensor_token_id``) and safetensors. A configuration with ``sensor_loc_type`` is of the later kind, whose
            aggregate probe reads the last sensor token; one without it is of the first kind, which reads the last
            token.
        tokenizer: where that is, if not there as well.

    Raises:
        TaskError: when a file is missing, or a parameter is missing, too many or of another shape.
    """
    import transformers

    folder = folder_of(name, _FILES)
    data = _config(folder, name)
    kind = str(data.get("model_type", "")).removesuffix("_mp")
    if kind not in transformers.CONFIG_MAPPING:
        raise TaskError(f"{name} is a {kind!r} model", needed="a kind that transformers knows, such as codegen_mp")
    kept = {key: value for key, value in data.items() if key not in ("model_type", "auto_map", "architectures")}
    config = transformers.CONFIG_MAPPING[kind].from_dict(kept)
    weights = _weights(folder, name)
    with torch.random.fork_rng(devices=[]):  # layers draw weights when they are made
        backbone = transformers.AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        model = MeasurementPredictor(
            backbone,
            backbone.base_model_prefix,
            int(data["sensor_token_id"]),
            int(data["n_sensors"]),
            "aggregate_probe.weight" in weights,
            "sensor_loc_type" not in data,
        )
    _fill(model, weights, name)
    try:
        found: Callable[..., Any] = transformers.AutoTokenizer.from_pretrained(
            tokenizer or str(folder), config=None if tokenizer else config, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise TaskError(f"no tokenizer in {tokenizer or name}: {error}", tries=["tokenizer=NAME"]) from error
    return model.eval(), found


def _config(folder: Path, name: str) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskError(f"{name} has no config.json that can be read: {error}") from error
    missing = [key for key in ("n_sensors", "sensor_token_id") if not isinstance(data.get(key), int)]
    if missing:
        raise TaskError(f"config.json of {name} has no {missing[0]}", needed="a measurement predictor")
    if data.get("sensor_loc_type", "locs_from_token") != "locs_from_token":
        raise TaskError(
            f"{name} finds its sensors by {data['sensor_loc_type']!r}", needed="sensors at a token (locs_from_token)"
        )
    return data


def _weights(folder: Path, name: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    try:
        for file in sorted(folder.glob("*.safetensors")):
            weights |= load_file(file)
    except (OSError, SafetensorError) as error:
        raise TaskError(f"the weights of {name} cannot be read: {error}") from error
    if not weights:
        raise TaskError(f"{name} has no safetensors", needed="model.safetensors: pickled weights are never read")
    return weights


def _fill(model: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Every parameter by its name; what older versions of transformers saved and newer ones compute is left aside."""
    wanted = model.state_dict()
    given = {key: value for key, value in weights.items() if key in wanted or not _recomputed(key)}
    for what, keys in (("lacks", wanted.keys() - given.keys()), ("has unknown", given.keys() - wanted.keys())):
        if keys:
            raise TaskError(
                f"{name} {what} {len(keys)} of the parameters, the first is {min(keys)!r}",
                causes=["a checkpoint of another kind of measurement predictor", "an unfinished copy"],
            )
    for key, value in given.items():
        if value.shape != wanted[key].shape:
            raise TaskError(f"{key} of {name} is {tuple(value.shape)}", needed=f"{tuple(wanted[key].shape)}")
    model.load_state_dict(given)


def _recomputed(key: str) -> bool:
    """Whether a name is that of a causal mask or of rotary frequencies."""
    return key.endswith(("attn.causal_mask", "attn.bias", "attention.bias", "masked_bias", "rotary_emb.inv_freq"))
