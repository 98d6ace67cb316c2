"""Replays a run's trace.safetensors in diffusers, transformers, peft and torch, and says how far apart they are.

    python tests/oracle/replay.py RUN_DIR [--trace NAME]        exit code 1 when anything is outside its limit

From the recipe, the base model, the pack's pictures and, of the trace, only pixel_values, input_ids and the parameters before each
step, this makes everything else again: the adapter's first values, row numbers, noise and timesteps (Philox, philox_reference.py),
latents, text embeddings, SDXL's time ids, noisy latents, target, prediction, loss, gradients; then, from the trace's gradients, the clipped norm, the learning
rate and the weights.
Every step starts from the trace's own parameters: Adam's first steps amplify rounding (the sign of near-zero gradients).
"""

import argparse
import json
import re
import sys
import tomllib
from pathlib import Path

import h5py
import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, EDMEulerScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import bucket_reference
import draws_reference as draws
import loss_reference
import lora_reference
import philox_reference as philox
from replay_updates import ReplayUpdates

# The largest error allowed of each kind; relative to the norm of what is expected unless said otherwise.
LIMITS = {
    "init": 1e-6,  # the adapter's first values
    "sample_ids": 0,  # equal
    "timesteps": 0,  # equal
    "input_ids": 0,  # equal: those of the caption that the slot should have
    "noise": 1e-6,
    "latents": 1e-5,
    "encoder_hidden_states": 1e-5,
    "noisy_latents": 1e-5,
    "target": 1e-5,
    "model_pred": 1e-5,
    "loss": 1e-5,
    "gradient": 5e-5,  # of all tensors together
    "gradient of a tensor": 5e-4,  # relative to the larger of its norm and 1e-3 of the whole gradient's
    "grad_norm": 1e-5,
    "class_sample_ids": 0,  # with prior preservation
    "instance_loss": 1e-5,
    "prior_loss": 1e-5,
    "lr": 0,  # the same double in metrics.jsonl, the same float in the trace
    "weights": 1e-6,  # of each tensor, after each update
    "mean loss": 1e-6,  # metrics.jsonl against the trace's micro-batches
}
SDXL_LIMITS = {"pooled_prompt_embeds": 1e-5, "add_time_ids": 0}
# Where the program computes in 16 bits and this in 32: about three times what was measured on tiny-sd15, on a CPU.
HALF_LIMITS = {
    "bf16": {"latents": 2e-2, "encoder_hidden_states": 2e-2, "noisy_latents": 1e-2, "target": 2e-2, "model_pred": 4e-2,
             "loss": 5e-3, "gradient": 6e-2, "gradient of a tensor": 2.5e-1},
    # The VAE stays in fp32 there (force_upcast), so latents and what is made of them have the limits of fp32.
    "fp16": {"encoder_hidden_states": 3e-3, "model_pred": 5e-3, "loss": 5e-4, "gradient": 8e-3, "gradient of a tensor": 4e-2},
}
WITH_CLASS_IMAGES = {"class_sample_ids", "instance_loss", "prior_loss"}


class Errors:
    """The worst error of each kind and where it was found; `limits` are of the kinds that this run has something of."""

    def __init__(self, limits):
        self.limits = limits
        self.worst = {}

    def add(self, kind, error, where):
        if kind not in self.worst or not error <= self.worst[kind][0]:
            self.worst[kind] = (float(error), where)

    def compare(self, kind, found, expected, where):
        if found.shape != expected.shape:
            raise ValueError(f"{where}: {kind} has shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
        self.add(kind, (found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30), where)

    def equal(self, kind, found, expected, where):
        self.add(kind, 0 if found == expected else float("inf"), where)

    def outside(self):
        """Kinds outside their limit, or never compared."""
        return [kind for kind, limit in self.limits.items() if kind not in self.worst or not self.worst[kind][0] <= limit]

    def table(self):
        lines = [f"{'compared':24}{'worst':>10}{'limit':>10}  at"]
        for kind, limit in self.limits.items():
            error, where = self.worst.get(kind, (float("nan"), "never compared"))
            lines.append(f"{kind:24}{error:10.1e}{limit:10.0e}  {where}")
        return "\n".join(lines)


KEY = re.compile(r"(unet|text_encoder|text_encoder_2)\.(.+)\."
                 r"(?:(lora\.down|lora\.up|lora_linear_layer\.down|lora_linear_layer\.up|lora_A|lora_B)\.weight|lora_magnitude_vector)")


def peft_name(key):
    """("unet", name of the parameter in peft) of the trace's "unet.<path>.lora.down.weight", and of the other spellings. Of text
    encoders transformers 5 leaves "text_model." out where they have no projection; so does the name here."""
    component, path, part = KEY.fullmatch(key).groups()
    word = "lora_magnitude_vector" if part is None else "lora_A" if part.endswith(("down", "A")) else "lora_B"
    return component, f"{path.removeprefix('text_model.')}.{word}.default.weight"


def read_captions(pack):
    """The captions of each row of a pack."""
    rows = []
    for path in sorted(pack.glob("shard-*.h5")):
        with h5py.File(path, "r", locking=False) as shard:
            blob, cuts = shard["captions"][:].tobytes(), shard["caption_offsets"][:]
            captions = iter([blob[a:b].decode() for a, b in zip(cuts, cuts[1:])])
            counts = shard["caption_counts"][:].tolist() if "caption_counts" in shard else [1] * len(shard["image_checksums"])
            rows += [[next(captions) for _ in range(count)] for count in counts]
    return rows


def read_images_of_epoch(pack):
    """The row of each image of an epoch, before they are permuted."""
    repeats = []
    for path in sorted(pack.glob("shard-*.h5")):
        with h5py.File(path, "r", locking=False) as shard:
            repeats += shard["repeats"][:].tolist() if "repeats" in shard else [1] * len(shard["image_checksums"])
    return [row for row, count in enumerate(repeats) for _ in range(count)]


class Replay:
    def __init__(self, run_dir, trace_name="trace.safetensors"):
        self.run_dir = Path(run_dir)
        self.recipe = tomllib.loads((self.run_dir / "recipe.toml").read_text(encoding="utf-8"))
        self.trace = load_file(self.run_dir / trace_name)
        with safe_open(self.run_dir / trace_name, "pt") as file:
            self.scales = {key: float(scale) for key, scale in file.metadata().items() if KEY.fullmatch(key)}
        self.keys = sorted(key.removeprefix("init/") for key in self.trace if key.startswith("init/"))
        self.steps = sorted({int(key.split("/")[0][4:]) for key in self.trace if key.startswith("step")})
        if self.steps[:1] != [0]:
            raise ValueError(f"'{trace_name}' doesn't start at step 0: the optimizer's state before it is not known")
        self.metrics = {line["global_step"]: line for line in map(
            json.loads, (self.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())}
        self.dreambooth = self.recipe["dreambooth"] if self.recipe["task"] == "dreambooth" else {}
        self.with_class_images = self.dreambooth.get("with_prior_preservation", False)
        self._load_base()
        limits = LIMITS | (SDXL_LIMITS if self.is_sdxl else {}) | HALF_LIMITS.get(self.recipe["train"]["mixed_precision"], {})
        self.errors = Errors({kind: limit for kind, limit in limits.items() if self.with_class_images or kind not in WITH_CLASS_IMAGES})
        self._add_adapter()
        self._count_samples()

    def _load_base(self):
        model = self.recipe["model"]
        base = Path(model["pretrained_model_name_or_path"])
        vae = model.get("pretrained_vae_model_name_or_path") or base / "vae"
        self.vae = AutoencoderKL.from_pretrained(vae).eval()
        self.text_encoder = CLIPTextModel.from_pretrained(base / "text_encoder").eval().requires_grad_(False)
        self.is_sdxl = (base / "text_encoder_2").exists()
        if self.is_sdxl:
            self.text_encoder_2 = CLIPTextModelWithProjection.from_pretrained(base / "text_encoder_2").eval().requires_grad_(False)
        self.unet = UNet2DConditionModel.from_pretrained(base / "unet").requires_grad_(False)
        written_by = json.loads((base / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
        self.scheduler = (EDMEulerScheduler if "EDM" in written_by else DDPMScheduler).from_pretrained(base / "scheduler")
        self.tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
        overrides = {key: model[key] for key in ("prediction_type", "rescale_betas_zero_snr") if model.get(key)}
        if overrides:
            self.scheduler = type(self.scheduler).from_config(self.scheduler.config, **overrides)

    def _add_adapter(self):
        """self.parameters: key of the trace -> parameter in peft; self.modules: (component, name), in the adapter's order."""
        lora = self.recipe["lora"]
        components = {"unet": (self.unet, lora["target_modules"])}
        if lora["train_text_encoder"]:
            components["text_encoder"] = (self.text_encoder, lora["text_encoder_target_modules"])
            if self.is_sdxl:
                components["text_encoder_2"] = (self.text_encoder_2, lora["text_encoder_target_modules"])
        named, self.modules, scales = {}, [], {}
        for component, (model, target_modules) in components.items():
            model.add_adapter(lora_reference.lora_config(lora, target_modules))
            short = lambda name: name.removeprefix("text_model.")
            named |= {(component, short(name)): p for name, p in model.named_parameters() if p.requires_grad}
            adapted = {short(name): module for name, module in model.named_modules() if hasattr(module, "lora_A")}
            self.modules += [(component, name, module) for name, module in adapted.items()]
            scales |= {(component, name): module.scaling["default"] for name, module in adapted.items()}
        ours = {peft_name(key) for key in self.keys}
        if ours != named.keys():
            raise ValueError(f"layers with an adapter differ from peft's: {sorted(ours ^ named.keys())[:6]}")
        self.parameters = {key: named[peft_name(key)] for key in self.keys}
        layer_of = lambda key: (peft_name(key)[0], re.sub(r"\.lora_\w+\.default\.weight$", "", peft_name(key)[1]))
        wrong = {key: scale for key, scale in self.scales.items() if abs(scale - scales[layer_of(key)]) > 1e-12 * scale}
        if wrong or set(self.scales) != set(self.keys):
            raise ValueError(f"the trace's scales are not peft's: {self.scales}")
        self.dropouts = []
        if lora["lora_dropout"] > 0:
            models = [model for model, _ in components.values()]
            self.dropouts = lora_reference.put_dropout(models, self.recipe["seed"], lora["lora_dropout"])
        if lora["rank_dropout"] > 0 or lora["module_dropout"] > 0:
            models = [model for model, _ in components.values()]
            self.dropouts += lora_reference.put_rank_dropout(models, self.recipe["seed"], lora["rank_dropout"], lora["module_dropout"])

    def _count_samples(self):
        data = self.recipe["data"]
        pack = self._pack(self.dreambooth.get("instance_data_dir") or data["train_data_dir"], "pack")
        self.image_sizes = self._image_sizes(pack)
        self.captions = read_captions(pack)
        self.held_out_rows = philox.held_out_rows(self.recipe["seed"], len(self.captions), self.recipe["validation"]["validation_split"])
        self.images = [row for row in read_images_of_epoch(pack) if row not in self.held_out_rows]
        self.num_samples = min(len(self.images), data.get("max_train_samples") or len(self.images))
        self.buckets = None
        if data.get("enable_bucket"):
            self.buckets = bucket_reference.Buckets(data, self.image_sizes, self.images[:self.num_samples],
                                                    self.recipe["train"]["train_batch_size"])
        if self.with_class_images:
            class_pack = self._pack(self.dreambooth["class_data_dir"], "class-pack")
            self.class_image_sizes = self._image_sizes(class_pack)
            self.num_class_images = min(len(read_images_of_epoch(class_pack)), self.dreambooth["num_class_images"])

    def _pack(self, folder, packed_as):
        """`folder`, a pack, or the one the run made of it."""
        return Path(folder) if (Path(folder) / "index.json").exists() else self.run_dir / packed_as

    def _rows(self, m, slots):
        """(epoch, row) of the instance images of micro-batch `m`, and its bucket where there is one."""
        if self.buckets:
            epoch, bucket, rows = self.buckets.micro_batch(self.recipe["seed"], m)
            return [(epoch, row) for row in rows], bucket
        rows = [self.images[philox.sample_id(self.recipe["seed"], slot, self.num_samples)] for slot in slots]
        return [(slot // self.num_samples, row) for slot, row in zip(slots, rows)], None

    def _caption(self, row, slot, epoch, shift):
        candidates = self.captions[row] if not shift else [self.dreambooth["class_prompt"]]
        own = self.recipe["task"] != "dreambooth" or self.dreambooth["custom_instance_prompts"]
        if not shift and (not own or not candidates[0]):
            candidates = [self.dreambooth.get("instance_prompt", "")]
        epoch = slot // self.num_class_images if shift else epoch
        return draws.caption(candidates, self.recipe["captions"], self.recipe["seed"], slot, epoch, shift)

    def _image_sizes(self, pack):
        sizes = []
        for shard in sorted(Path(pack).glob("shard-*.h5")):
            with h5py.File(shard, "r", locking=False) as file:
                sizes.append(file["image_sizes"][:].astype(int).reshape(-1, 2))
        return np.concatenate(sizes).tolist()

    def replay(self):
        self._compare_init()
        for step in self.steps:
            self._replay_step(step)
        ReplayUpdates(self.recipe, self.trace, self.metrics, self.scales, self.run_dir).replay(self.steps, self.errors)
        return self.errors

    def _compare_init(self):
        """down as `init` says, numbered in the order of diffusers' modules; up = 0; magnitudes the norms of the weights."""
        keys = {peft_name(key): key for key in self.keys}
        for position, (component, name, module) in enumerate(self.modules):
            down, up = (self.trace["init/" + keys[component, f"{name}.{part}.default.weight"]] for part in ("lora_A", "lora_B"))
            expected = lora_reference.first_down(self.recipe["lora"]["init"], self.recipe["seed"], position, tuple(down.shape))
            self.errors.compare("init", down, expected, name)
            self.errors.equal("init", up.count_nonzero().item(), 0, name)
            if self.recipe["lora"]["use_dora"]:
                magnitude = self.trace["init/" + keys[component, f"{name}.lora_magnitude_vector.default.weight"]]
                self.errors.compare("init", magnitude, module.get_base_layer().weight.flatten(1).norm(dim=1), name)

    def _replay_step(self, step):
        before = "init/" if step == 0 else f"step{step - 1}/param/"
        with torch.no_grad():
            for key in self.keys:
                self.parameters[key].copy_(self.trace[before + key].reshape(self.parameters[key].shape))
        for parameter in self.parameters.values():
            parameter.grad = None
        train = self.recipe["train"]
        count = train["total_batch_size"] // train["train_batch_size"]
        losses = []
        for m in range(step * count, (step + 1) * count):
            losses.append(self._replay_micro_batch(f"step{step}/micro{m}/", m, train["train_batch_size"]))
            (losses[-1] / count).backward()
        self._compare_gradients(step)
        traced = torch.stack([self.trace[f"step{step}/micro{m}/loss"] for m in range(step * count, (step + 1) * count)])
        logged = torch.tensor(self.metrics[step + 1]["loss"], dtype=torch.float64)
        self.errors.compare("mean loss", logged, traced.double().mean(), f"step{step}")

    def _replay_micro_batch(self, at, m, batch):
        compare = lambda kind, expected: self.errors.compare(kind, self.trace[at + kind], expected, at)
        seed, slots = self.recipe["seed"], range(m * batch, (m + 1) * batch)
        instances, bucket = self._rows(m, slots)
        side = self.recipe["data"]["resolution"]
        pixels = 2 ** (len(self.vae.config.block_out_channels) - 1)
        latent_shape = (self.vae.config.latent_channels, *(length // pixels for length in bucket or (side, side)))
        # The rows: instance images, then with prior preservation the class images of the same slots.
        rows = [(slot, shift) for shift in ([0, philox.CLASS_IMAGE] if self.with_class_images else [0]) for slot in slots]
        for dropout in self.dropouts:
            dropout.rows = [(slot, shift != 0) for slot, shift in rows]
        draw = lambda purpose: torch.stack(
            [torch.from_numpy(philox.normal(seed, slot, purpose + shift, latent_shape)) for slot, shift in rows])

        steps = self.scheduler.config.num_train_timesteps
        timesteps = torch.tensor([draws.timestep(self.recipe["timesteps"], steps, seed, slot, shift) for slot, shift in rows])
        vae_noise = draw(philox.VAE_SAMPLE)
        sample_ids = [row for _, row in instances]
        self.errors.equal("sample_ids", self.trace[at + "sample_ids"].tolist(), sample_ids, at)
        if self.with_class_images:
            self.errors.equal("class_sample_ids", self.trace[at + "class_sample_ids"].tolist(),
                              [philox.sample_id(seed, slot, self.num_class_images, class_images=True) for slot in slots], at)
        self.errors.equal("timesteps", self.trace[at + "timesteps"].tolist(), timesteps.tolist(), at)
        captions = [self._caption(row, slot, epoch, shift) for (epoch, row), (slot, shift) in zip(instances * 2, rows)]
        input_ids = self.tokenizer(captions, padding="max_length", truncation=True, max_length=77).input_ids
        self.errors.equal("input_ids", self.trace[at + "input_ids"].tolist(), input_ids, at)

        with torch.no_grad():
            distribution = self.vae.encode(self.trace[at + "pixel_values"]).latent_dist
            latents = self._scaled(distribution.mean + distribution.std * vae_noise)
        with torch.set_grad_enabled(self.recipe["lora"]["train_text_encoder"]):
            encoder_hidden_states, added = self._encode_text(at, rows, sample_ids, bucket)
        compare("latents", latents)
        compare("encoder_hidden_states", encoder_hidden_states.detach())
        if self.is_sdxl:
            compare("pooled_prompt_embeds", added["text_embeds"].detach())
            self.errors.equal("add_time_ids", self.trace[at + "add_time_ids"].tolist(), added["time_ids"].tolist(), at)

        noise, new_noise = loss_reference.noise(self.recipe, latents, rows)
        compare("noise", noise)
        if isinstance(self.scheduler, EDMEulerScheduler):
            noisy_latents, model_pred = self._predict_edm(latents, new_noise, timesteps, encoder_hidden_states, added)
            target = latents
        elif self.recipe["train"]["do_edm_style_training"]:
            noisy_latents, model_pred = self._predict_edm_style(latents, new_noise, timesteps, encoder_hidden_states, added)
            target = latents
        else:
            noisy_latents = self.scheduler.add_noise(latents, new_noise, timesteps)
            target = {"epsilon": lambda: noise,
                      "v_prediction": lambda: self.scheduler.get_velocity(latents, noise, timesteps),
                      "sample": lambda: latents}[self.scheduler.config.prediction_type]()
            model_pred = self.unet(noisy_latents, timesteps, encoder_hidden_states, added_cond_kwargs=added).sample
        loss = self._loss(at, model_pred, target, timesteps, compare)
        compare("noisy_latents", noisy_latents)
        compare("target", target)
        compare("model_pred", model_pred.detach())
        compare("loss", loss.detach())
        return loss

    def _scaled(self, latents):
        config = self.vae.config
        if config.latents_mean is None:
            return latents * config.scaling_factor
        mean, std = (torch.tensor(values).view(1, 4, 1, 1) for values in (config.latents_mean, config.latents_std))
        return (latents - mean) * config.scaling_factor / std

    def _predict_edm(self, latents, noise, timesteps, encoder_hidden_states, added):
        """train_dreambooth_lora_sdxl.py with an EDMEulerScheduler: its index is counted from the noisiest, our timestep to it."""
        indices = self.scheduler.config.num_train_timesteps - 1 - timesteps
        told = self.scheduler.timesteps[indices]
        sigmas = self.scheduler.sigmas[indices].view(-1, 1, 1, 1)
        noisy_latents = self.scheduler.add_noise(latents, noise, told)
        model_pred = self.unet(self.scheduler.precondition_inputs(noisy_latents, sigmas), told, encoder_hidden_states,
                               added_cond_kwargs=added).sample
        return noisy_latents, self.scheduler.precondition_outputs(noisy_latents, model_pred, sigmas)

    def _predict_edm_style(self, latents, noise, timesteps, encoder_hidden_states, added):
        """train_dreambooth_lora_sdxl.py with an EulerDiscreteScheduler."""
        scheduler = EulerDiscreteScheduler.from_config(self.scheduler.config)
        sigmas = loss_reference.euler_sigmas(scheduler, timesteps).view(-1, 1, 1, 1)
        noisy_latents = scheduler.add_noise(latents, noise, timesteps.float())
        model_pred = self.unet(noisy_latents / ((sigmas**2 + 1) ** 0.5), timesteps, encoder_hidden_states, added_cond_kwargs=added).sample
        if scheduler.config.prediction_type == "epsilon":
            return noisy_latents, model_pred * (-sigmas) + noisy_latents
        return noisy_latents, model_pred * (-sigmas / (sigmas**2 + 1) ** 0.5) + (noisy_latents / (sigmas**2 + 1))

    def _loss(self, at, model_pred, target, timesteps, compare):
        mask, weights = self.trace.get(at + "loss_mask"), self.trace.get(at + "loss_weights")
        if not self.with_class_images:
            return loss_reference.loss(self.recipe, self.scheduler, model_pred, target, timesteps, mask, weights)
        halves = lambda tensor: (None, None) if tensor is None else torch.chunk(tensor, 2, dim=0)
        (instance, prior) = zip(*map(halves, (model_pred, target, timesteps, mask, weights)))
        loss = loss_reference.loss(self.recipe, self.scheduler, *instance)
        prior_loss = loss_reference.loss(self.recipe, self.scheduler, *prior, by_timestep=False)
        compare("instance_loss", loss.detach())
        compare("prior_loss", prior_loss.detach())
        return loss + self.dreambooth["prior_loss_weight"] * prior_loss

    def _encode_text(self, at, rows, sample_ids, bucket):
        """encoder_hidden_states and added_cond_kwargs, the latter for SDXL alone (encode_prompt() of its script); with clip_skip
        as encode_prompt() of the pipelines."""
        clip_skip = self.recipe["model"]["clip_skip"]
        if not self.is_sdxl and clip_skip == 0:
            return self.text_encoder(self.trace[at + "input_ids"])[0], {}
        if not self.is_sdxl:
            states = self.text_encoder(self.trace[at + "input_ids"], output_hidden_states=True).hidden_states
            return getattr(self.text_encoder, "text_model", self.text_encoder).final_layer_norm(states[-(clip_skip + 1)]), {}
        first = self.text_encoder(self.trace[at + "input_ids"], output_hidden_states=True)
        second = self.text_encoder_2(self.trace[at + "input_ids_2"], output_hidden_states=True)
        time_ids = torch.tensor([self._time_ids(row, slot, shift, bucket) for row, (slot, shift) in zip(sample_ids * 2, rows)],
                                dtype=torch.float32)
        return (torch.cat([text.hidden_states[-(clip_skip + 2)] for text in (first, second)], dim=-1),
                {"text_embeds": second.text_embeds, "time_ids": time_ids})

    def _time_ids(self, row, slot, shift, bucket):
        """The picture's size in the pack, where the crop begins after the resize, and the target's size."""
        data, seed = self.recipe["data"], self.recipe["seed"]
        height, width = (self.class_image_sizes[philox.sample_id(seed, slot, self.num_class_images, class_images=True)] if shift
                         else self.image_sizes[row])
        side = data["resolution"]
        target = bucket or (side, side)
        if bucket:
            resized = (bucket_reference.covering((height, width), bucket) if shift
                       else bucket_reference.frame((height, width), data)[0])
        else:
            resized = [side * size // min(height, width) for size in (height, width)]
        if data["center_crop"]:
            crop = [round((size - length) / 2) for size, length in zip(resized, target)]
        else:
            words = philox.words(seed, slot, philox.CROP + shift, 0)
            crop = [int(words[i]) * (resized[i] - target[i] + 1) >> 32 for i in (0, 1)]
        return [height, width, *crop, *target]

    def _gradient(self, key):
        """Layers of the (first) text encoder that clip_skip leaves out have no gradient, and of SDXL's another one."""
        parameter = self.parameters[key]
        if parameter.grad is None:
            unused = self.recipe["model"]["clip_skip"] + self.is_sdxl
            layer = re.match(r"text_encoder\..*\.layers\.(\d+)\.", key)
            assert layer and int(layer[1]) >= self.text_encoder.config.num_hidden_layers - unused, key
            return torch.zeros_like(parameter)
        return parameter.grad

    def _compare_gradients(self, step):
        found = {key: self.trace[f"step{step}/grad/{key}"].double() for key in self.keys}
        expected = {key: self._gradient(key).double().reshape(found[key].shape) for key in self.keys}
        flat = lambda gradients: torch.cat([gradients[key].flatten() for key in self.keys])
        self.errors.compare("gradient", flat(found), flat(expected), f"step{step}")
        whole = flat(expected).norm()
        for key in self.keys:
            error = (found[key] - expected[key]).norm() / torch.maximum(expected[key].norm(), 1e-3 * whole)
            self.errors.add("gradient of a tensor", error, f"step{step}/grad/{key}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir")
    parser.add_argument("--trace", default="trace.safetensors", help="file name in RUN_DIR")
    arguments = parser.parse_args()
    errors = Replay(arguments.run_dir, arguments.trace).replay()
    print(errors.table())
    return 1 if errors.outside() else 0


if __name__ == "__main__":
    sys.exit(main())
