"""What the loop relies on, for every family in the table: losses, texts, targets, keys, and no network."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_trainer.adapters.lora import LoraAdapter
from lora_trainer.errors import ConfigError
from lora_trainer.models import table, tokenizer
from lora_trainer.models.family import ModelSettings, Objective, Tensors
from lora_trainer.models.table import FAMILIES, load_model
from lora_trainer.models.webui import webui_layers
from lora_trainer.registry import Entry, Registry
from tests import tiny

CAPTIONS = ("a mountain in the mist, expressive stroke", "a boat " * 60)
GOLDEN = {
    "sd1": {"epsilon": (0.338289, 1.218983), "v_prediction": (0.313797, 0.009543)},
    "sd2": {"epsilon": (0.34384, 1.180685), "v_prediction": (0.318934, 0.009461)},
    "sdxl": {"epsilon": (0.368216, 1.53179), "v_prediction": (0.341206, 0.013877)},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: tiny.make_checkpoint(family, folder, name=family) for family in tiny.FAMILIES}


@pytest.fixture(scope="module")
def models(bases: dict[str, Path]) -> dict[str, Any]:
    return {family: load_model(ModelSettings(path)) for family, path in bases.items()}


def pixels(num: int = 2) -> Tensor:
    """Smooth pictures [num, 3, 64, 64], the same everywhere."""
    waves = torch.arange(num * 3 * 64 * 64, dtype=torch.float32).reshape(num, 3, 64, 64)
    return torch.sin(waves / 97) * 0.9


def make_batch(model: Any, objective: Objective) -> tuple[Tensors, Tensors]:
    encoded = model.encode_pictures(pixels()) | model.encode_texts(CAPTIONS)
    size = model.size_condition((80, 96), (0, 8), (64, 64))
    examples = [{name: tensor[index] for name, tensor in encoded.items()} | size for index in range(2)]
    draws = [model.make_draws(example, torch.Generator().manual_seed(index), objective) for index, example in enumerate(examples)]
    return model.collate(examples), {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}


def test_the_table_and_the_tiny_models_name_the_same_families() -> None:
    assert FAMILIES.names() == tiny.FAMILIES


@pytest.mark.hosts
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("family", FAMILIES.names())
def test_losses_are_the_same_under_every_package_set(family: str, prediction_type: str, bases: dict[str, Path]) -> None:
    model = load_model(ModelSettings(bases[family], prediction_type=prediction_type))
    objective = Objective(min_snr_gamma=5.0, noise_offset=0.05)
    with torch.no_grad():
        losses = model.losses(*make_batch(model, objective), objective)
    torch.testing.assert_close(losses, torch.tensor(GOLDEN[family][prediction_type]), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES.names())
def test_an_items_loss_does_not_depend_on_its_batch(family: str, models: dict[str, Any]) -> None:
    model = models[family]
    batch, draws = make_batch(model, Objective())
    with torch.no_grad():
        together = model.losses(batch, draws, Objective())
        alone = [
            model.losses(
                {name: tensor[index : index + 1] for name, tensor in batch.items()},
                {name: tensor[index : index + 1] for name, tensor in draws.items()},
                Objective(),
            )
            for index in range(2)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES.names())
def test_losses_are_zero_for_a_perfect_prediction(family: str, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = models[family]
    batch, draws = make_batch(model, Objective())
    monkeypatch.setattr(model, "denoise", lambda noisy, timesteps, batch: draws["noise"])
    assert model.losses(batch, draws, Objective()).tolist() == [0, 0]
    monkeypatch.setattr(model, "denoise", lambda noisy, timesteps, batch: draws["noise"] + 2)
    torch.testing.assert_close(model.losses(batch, draws, Objective()), torch.tensor([4.0, 4.0]))


def test_draws_follow_the_generator_and_noise_offset_changes_only_the_noise(models: dict[str, Any]) -> None:
    example = {"latent_mean": torch.zeros(4, 8, 6)}

    def draw(seed: int, offset: float = 0.0) -> Tensors:
        return models["sd1"].make_draws(example, torch.Generator().manual_seed(seed), Objective(noise_offset=offset))

    assert all(torch.equal(draw(1)[name], tensor) for name, tensor in draw(1).items())
    assert not torch.equal(draw(1)["noise"], draw(2)["noise"])
    assert {int(draw(seed)["timestep"]) // 250 for seed in range(60)} == {0, 1, 2, 3}
    difference = draw(1, 0.1)["noise"] - draw(1)["noise"]
    assert torch.equal(draw(1, 0.1)["latent_noise"], draw(1)["latent_noise"])
    torch.testing.assert_close(difference, difference[:, :1, :1].expand(4, 8, 6), atol=1e-6, rtol=0)
    assert difference.abs().min() > 0


@pytest.mark.parametrize("family", FAMILIES.names())
def test_decoding_inverts_encoding_and_latents_are_scaled(family: str, models: dict[str, Any]) -> None:
    model = models[family]
    encoded = model.encode_pictures(pixels())
    assert encoded["latent_mean"].shape == encoded["latent_std"].shape == (2, 4, 8, 8)
    posterior = model.vae.encode(pixels()).latent_dist
    factor = 0.13025 if family == "sdxl" else 0.18215
    torch.testing.assert_close(encoded["latent_mean"], posterior.mean * factor)
    torch.testing.assert_close(encoded["latent_std"], posterior.std * factor)
    torch.testing.assert_close(
        model.decode_latents(encoded["latent_mean"]), model.vae.decode(posterior.mean).sample, atol=1e-4, rtol=1e-4
    )


# --- texts, against transformers' own encoders with all their layers


def whole_encoder(family: str, index: int) -> torch.nn.Module:
    """The encoder as transformers builds it, uncut."""
    sizes = tiny.SIZES[family].text_encoders[index]
    encoder_class = CLIPTextModelWithProjection if sizes.pooled_width else CLIPTextModel
    encoder = encoder_class(CLIPTextConfig(**sizes.transformers_config())).eval()
    part = "text_encoder_2" if index else "text_encoder"
    tensors = tiny.module_tensors(0, tiny.SIZES[family])[part]
    encoder.load_state_dict(
        {name: tensors[tiny._full_name(part, name)].float() for name, _ in encoder.named_parameters()}, strict=False
    )
    return encoder


def token_ids(caption: str, pad: int) -> Tensor:
    tokens = tokenizer.encode(caption)
    return torch.tensor([[49406, *tokens, 49407, *[pad] * (75 - len(tokens))]])


@torch.no_grad()
@pytest.mark.hosts
@pytest.mark.parametrize("clip_skip", [1, 2])
def test_sd1_texts_are_the_webuis(clip_skip: int, bases: dict[str, Path]) -> None:
    model = load_model(ModelSettings(bases["sd1"], clip_skip=clip_skip))
    encoder = whole_encoder("sd1", 0)
    output = encoder(token_ids(CAPTIONS[0], 49407), output_hidden_states=True)
    norm = getattr(encoder, "text_model", encoder).final_layer_norm
    expected = output.last_hidden_state if clip_skip == 1 else norm(output.hidden_states[-2])
    torch.testing.assert_close(model.encode_texts(CAPTIONS[:1])["text"], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.hosts
def test_sd2_texts_are_the_webuis(models: dict[str, Any]) -> None:
    encoder = whole_encoder("sd2", 0)
    output = encoder(token_ids(CAPTIONS[0], 0), output_hidden_states=True)
    expected = getattr(encoder, "text_model", encoder).final_layer_norm(output.hidden_states[-2])
    torch.testing.assert_close(models["sd2"].encode_texts(CAPTIONS[:1])["text"], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.hosts
def test_sdxl_texts_are_the_webuis(models: dict[str, Any]) -> None:
    first, second = whole_encoder("sdxl", 0), whole_encoder("sdxl", 1)
    hidden = first(token_ids(CAPTIONS[0], 49407), output_hidden_states=True).hidden_states[-2]
    ids = token_ids(CAPTIONS[0], 0)
    output = second(ids, output_hidden_states=True)
    ours = models["sdxl"].encode_texts(CAPTIONS[:1])
    torch.testing.assert_close(ours["text"], torch.cat([hidden, output.hidden_states[-2]], -1), atol=1e-5, rtol=1e-4)
    # OpenCLIP's own formula: the normed last layer at the end token, through the projection.
    at_end = output.last_hidden_state[0, ids[0].tolist().index(49407)]
    pooled = at_end @ second.text_projection.weight.t()
    torch.testing.assert_close(ours["pooled_text"][0], pooled, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES.names())
def test_long_captions_are_chunks_side_by_side(family: str, models: dict[str, Any]) -> None:
    model = models[family]
    words = "boat " * 75
    both = model.encode_texts([words + "river " * 10])
    first, second = model.encode_texts([words]), model.encode_texts(["river " * 10])
    torch.testing.assert_close(both["text"], torch.cat([first["text"], second["text"]], dim=1), atol=1e-5, rtol=1e-4)
    if "pooled_text" in both:
        torch.testing.assert_close(both["pooled_text"], first["pooled_text"], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES.names())
def test_collating_pads_as_encoding_together_does(family: str, bases: dict[str, Path]) -> None:
    model = load_model(ModelSettings(bases[family]))
    together = model.encode_texts(CAPTIONS)
    apart = [{name: tensor[0] for name, tensor in model.encode_texts([caption]).items()} for caption in CAPTIONS]
    assert apart[0]["text"].shape[0] < apart[1]["text"].shape[0]
    collated = model.collate(apart)
    assert collated.keys() == together.keys()
    for name in together:
        torch.testing.assert_close(collated[name], together[name], atol=1e-5, rtol=1e-4)


def test_clip_skip_beyond_the_layers_is_an_error(bases: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"clip_skip: \(3\) must be from 1 to 2"):
        load_model(ModelSettings(bases["sd1"], clip_skip=3))


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_clip_skip_without_effect_is_said(family: str, bases: dict[str, Path]) -> None:
    model = load_model(ModelSettings(bases[family], clip_skip=2))
    assert any("clip_skip (2) has no effect" in note for note in model.notes)


def test_sizes_are_told_to_sdxl_height_first(models: dict[str, Any]) -> None:
    assert models["sdxl"].size_condition((800, 600), (10, 20), (512, 384))["time_ids"].tolist() == [600, 800, 20, 10, 384, 512]
    assert models["sd1"].size_condition((800, 600), (10, 20), (512, 384)) == {}


def test_sdxl_listens_to_sizes_and_pooled_text(models: dict[str, Any]) -> None:
    model = models["sdxl"]
    batch, draws = make_batch(model, Objective())
    with torch.no_grad():
        before = model.losses(batch, draws, Objective())
        for name in ("time_ids", "pooled_text", "text"):
            assert not torch.allclose(model.losses(batch | {name: batch[name] * 2}, draws, Objective()), before, rtol=1e-6)


# --- LoRA targets and keys


@pytest.mark.parametrize("family", FAMILIES.names())
@pytest.mark.parametrize("selection", ["attention", "attention_ff", "all_linear", "conv"])
def test_every_target_has_a_key_that_the_webui_finds(
    family: str, selection: str, models: dict[str, Any], bases: dict[str, Path]
) -> None:
    model, layers = models[family], webui_layers(bases[family])
    for part, module in model.parts.items():
        targets = model.lora_targets(part, [selection])
        assert bool(targets) == (part == "unet" or selection != "conv")
        for name in targets:
            shape = module.get_submodule(name).weight.shape
            assert layers[model.webui_key(part, name)] == tuple(shape)
    keys = [model.webui_key(part, name) for part in model.parts for name in model.lora_targets(part, ["all_linear", "conv"])]
    assert len(set(keys)) == len(keys)


def test_presets_name_what_they_say(models: dict[str, Any]) -> None:
    model = models["sd1"]

    def ends(selection: str, part: str = "unet") -> set[str]:
        return {name.split("transformer_blocks.0.")[-1].split("layers.0.")[-1] for name in model.lora_targets(part, [selection])}

    attention = {f"attn{number}.{end}" for number in (1, 2) for end in ("to_q", "to_k", "to_v", "to_out.0")}
    assert ends("attention") == attention
    assert ends("attention_ff") == attention | {"ff.net.0.proj", "ff.net.2"}
    everything = ends("all_linear")
    assert {"time_embedding.linear_1", "mid_block.attentions.0.proj_in", "down_blocks.0.resnets.0.time_emb_proj"} <= everything
    assert not any("conv" in name for name in everything)
    assert {"conv_in", "down_blocks.0.resnets.0.conv1", "up_blocks.0.upsamplers.0.conv"} <= ends("conv")


@pytest.mark.parametrize("selection", [["q_proj", "v_proj"], ["to_q", "to_v"]])
def test_names_of_one_convention_are_understood_in_the_others_modules(selection: list[str], models: dict[str, Any]) -> None:
    model = models["sdxl"]
    assert {name.rpartition(".")[2] for name in model.lora_targets("unet", selection)} == {"to_q", "to_v"}
    for part in ("text_encoder", "text_encoder_2"):
        assert {name.rpartition(".")[2] for name in model.lora_targets(part, selection)} == {"q_proj", "v_proj"}
    assert all(name.endswith("to_out.0") for name in model.lora_targets("unet", ["out_proj"]))
    assert all(name.endswith("mlp.fc2") for name in model.lora_targets("text_encoder", ["ff.net.2"]))


def test_no_target_lies_in_a_layer_that_is_not_used(bases: dict[str, Path], models: dict[str, Any]) -> None:
    def layers(model: Any, part: str) -> set[int]:
        return {int(name.split("layers.")[1].split(".")[0]) for name in model.lora_targets(part, ["attention"])}

    assert layers(models["sd1"], "text_encoder") == {0, 1}
    assert layers(load_model(ModelSettings(bases["sd1"], clip_skip=2)), "text_encoder") == {0}
    assert layers(models["sd2"], "text_encoder") == {0, 1}
    assert layers(models["sdxl"], "text_encoder") == {0}
    assert layers(models["sdxl"], "text_encoder_2") == set(range(10))


def test_an_unknown_target_lists_the_known_ones(models: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"'to_qq' names no layer .*did you mean 'to_q'.*attention_ff.*time_emb_proj"):
        models["sd1"].lora_targets("unet", ["to_k", "to_qq"])
    with pytest.raises(ConfigError, match="target_modules: is empty"):
        models["sd1"].lora_targets("unet", [])


# --- prediction type, notes, metadata, keys of the cache


def test_the_setting_goes_before_detection(bases: dict[str, Path]) -> None:
    model = load_model(ModelSettings(bases["sd1"], prediction_type="v_prediction"))
    assert model.schedule.prediction_type == "v_prediction"  # type: ignore[attr-defined]
    assert "predicts v_prediction (set by prediction_type)" in model.notes[0]


@pytest.mark.hosts
@pytest.mark.parametrize(("shift", "expected", "resolution"), [(0.0, "epsilon", 512), (-3.0, "v_prediction", 768)])
def test_sd2_without_hints_is_told_by_a_trial_forward(shift: float, expected: str, resolution: int, tmp_path: Path) -> None:
    path = tiny.make_checkpoint("sd2", tmp_path, has_yaml=False)
    tensors = load_file(path)
    tensors["model.diffusion_model.out.2.bias"] += shift
    save_file(tensors, path)
    model: Any = load_model(ModelSettings(path))
    assert (model.schedule.prediction_type, model.resolution) == (expected, resolution)
    assert "trial forward" in model.notes[0]


@pytest.mark.parametrize(
    ("family", "prediction_type", "version", "architecture"),
    [
        ("sd1", "epsilon", "sd_v1", "stable-diffusion-v1/lora"),
        ("sd1", "v_prediction", "sd_v1_v", "stable-diffusion-v1/lora"),
        ("sd2", "epsilon", "sd_v2", "stable-diffusion-v2-512/lora"),
        ("sd2", "v_prediction", "sd_v2_v", "stable-diffusion-v2-768-v/lora"),
        ("sdxl", "epsilon", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
    ],
)
def test_metadata_names_the_base(
    family: str, prediction_type: str, version: str, architecture: str, bases: dict[str, Path]
) -> None:
    import hashlib

    facts = load_model(ModelSettings(bases[family], prediction_type=prediction_type)).metadata()
    data = bases[family].read_bytes()
    assert facts["ss_base_model_version"] == version
    assert facts["ss_v2"] == ("True" if family == "sd2" else "False")
    assert facts["modelspec.architecture"] == architecture
    assert facts["modelspec.prediction_type"] == ("v" if prediction_type == "v_prediction" else "epsilon")
    assert facts["ss_sd_model_name"] == f"{family}.safetensors"
    assert facts["ss_new_sd_model_hash"] == hashlib.sha256(data).hexdigest()
    assert facts["ss_sd_model_hash"] == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    assert all(isinstance(value, str) for value in facts.values())


def test_keys_of_the_cache_change_with_what_they_stand_for(
    bases: dict[str, Path], tmp_path: Path, models: dict[str, Any]
) -> None:
    plain = models["sd1"]
    other = tiny.make_checkpoint("sd1", tmp_path, seed=1)
    skipped = load_model(ModelSettings(bases["sd1"], clip_skip=2))
    with_vae = load_model(ModelSettings(bases["sd1"], vae=other))
    again = load_model(ModelSettings(bases["sd1"]))
    half = load_model(ModelSettings(bases["sd1"], dtype=torch.bfloat16))
    assert (again.picture_key, again.text_key) == (plain.picture_key, plain.text_key)
    assert (skipped.picture_key, skipped.text_key != plain.text_key) == (plain.picture_key, True)
    assert (with_vae.picture_key != plain.picture_key, with_vae.text_key) == (True, plain.text_key)
    assert (half.picture_key, half.text_key != plain.text_key) == (plain.picture_key, True)


# --- adding a family


def test_a_family_is_one_file_and_one_line_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_family.py").write_text(
        """
from lora_trainer.models.detect import Detection

def detect(path, header):
    if header is not None and "toy.weight" in header.shapes:
        return Detection("toy", path, "original", None, "", 32)

def load(settings, detection):
    return ("a toy", detection.path)
""",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    toy = Entry("toy", "Toy", "A toy.", "toy_family:load", options={"detect": "toy_family:detect"})
    monkeypatch.setattr(table, "FAMILIES", Registry("model family", (*FAMILIES, toy)))
    path = tmp_path / "base.safetensors"
    save_file({"toy.weight": torch.zeros(1)}, path)
    assert load_model(ModelSettings(path)) == ("a toy", path)


# --- running


@pytest.mark.hosts
@pytest.mark.parametrize("family", FAMILIES.names())
def test_gradients_reach_denoiser_and_text_encoders_with_checkpointing(family: str, bases: dict[str, Path]) -> None:
    model: Any = load_model(ModelSettings(bases[family], gradient_checkpointing=True))
    targets = {part: model.lora_targets(part, ["attention"]) for part in model.parts}
    weights = {
        (part, name): model.parts[part].get_submodule(name).weight.requires_grad_() for part in targets for name in targets[part]
    }
    objective = Objective()
    with torch.no_grad():
        batch, draws = make_batch(model, objective)
    model.losses(batch | model.encode_texts(CAPTIONS), draws, objective).sum().backward()
    without = [key for key, weight in weights.items() if weight.grad is None or not weight.grad.abs().sum()]
    assert not without


@pytest.mark.hosts
def test_checkpointing_repeats_the_numbers_and_leaves_the_host_s_random_generators_alone(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host draws from those in another thread: set back, it would draw the same noise twice."""
    model: Any = load_model(ModelSettings(bases["sd1"]))
    LoraAdapter.inject(model, {"unet": model.lora_targets("unet", ["attention"])}, rank=4, alpha=4, dropout=0.5, seed=1)
    model.unet.train()
    weights = [weight for weight in model.unet.parameters() if weight.requires_grad]
    objective = Objective()
    with torch.no_grad():
        for weight in weights:
            weight += 0.01
        batch, draws = make_batch(model, objective)

    def compute() -> tuple[torch.Tensor, list[torch.Tensor], int]:
        num_kept = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal num_kept
            num_kept += 1
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = model.losses(batch, draws, objective)
        return losses.detach(), list(torch.autograd.grad(losses.sum(), weights)), num_kept

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the process's random generator was touched")

    losses, gradients, num_kept = compute()
    for owner in (torch, torch.random):
        monkeypatch.setattr(owner, "get_rng_state", refuse)
        monkeypatch.setattr(owner, "set_rng_state", refuse)
    model.set_gradient_checkpointing(True)
    again, repeated, num_kept_again = compute()
    torch.testing.assert_close((again, repeated), (losses, gradients))
    assert num_kept_again < num_kept / 2
    model.set_gradient_checkpointing(False)
    assert compute()[2] == num_kept


@pytest.mark.hosts
@pytest.mark.parametrize("family", FAMILIES.names())
def test_bf16_runs_under_autocast_and_gives_nearly_the_same_losses(
    family: str, bases: dict[str, Path], models: dict[str, Any]
) -> None:
    model = load_model(ModelSettings(bases[family], dtype=torch.bfloat16))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.losses(*make_batch(model, Objective()), Objective())
    with torch.no_grad():
        exact = models[family].losses(*make_batch(models[family], Objective()), Objective())
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, exact, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("family", FAMILIES.names())
def test_without_autocast_the_numbers_are_the_same(family: str, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On Apple's GPUs torch before 2.5 has none, and raises even where it is to be off."""

    def refuse(device_type: str, **options: Any) -> None:
        raise RuntimeError("User specified an unsupported autocast device_type 'mps'")

    model, objective = models[family], Objective()
    with torch.no_grad():
        batch, draws = make_batch(model, objective)
        expected = model.losses(batch, draws, objective), model.decode_latents(batch["latent_mean"])
        monkeypatch.setattr(torch, "autocast", refuse)
        again, _ = make_batch(model, objective)
        torch.testing.assert_close(again["latent_mean"], batch["latent_mean"])
        torch.testing.assert_close((model.losses(batch, draws, objective), model.decode_latents(batch["latent_mean"])), expected)


def test_released_encoders_are_still_padded_with(bases: dict[str, Path]) -> None:
    model: Any = load_model(ModelSettings(bases["sd1"]))
    texts = [{"text": model.encode_texts([caption])["text"][0].detach()} for caption in CAPTIONS]
    expected = model.encode_texts(CAPTIONS)["text"]
    model.release_encoders(keep_text=False)
    torch.testing.assert_close(model.collate(texts)["text"], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.hosts
@pytest.mark.parametrize("family", FAMILIES.names())
def test_loading_and_running_open_no_socket(family: str, bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    tokenizer.load_tokenizer.cache_clear()
    model = load_model(ModelSettings(bases[family]))
    with torch.no_grad():
        assert model.losses(*make_batch(model, Objective()), Objective()).isfinite().all()
