"""AdamW and clip_gradient against torch.optim.AdamW and torch.nn.utils.clip_grad_norm_, 20 steps from given gradients."""

import os
import subprocess

import numpy as np
import pytest
import torch

PROBE = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "optimizer_probe")
STEPS = 20
# elements, learning_rate, betas, weight_decay, epsilon, max_norm, magnitude of the gradients
CASES = [
    (100003, 1e-4, (0.9, 0.999), 1e-2, 1e-8, 1.0, 1e-2),
    (4096, 1e-3, (0.8, 0.95), 0.1, 1e-6, 0.5, 1.0),
    (17, 1e-2, (0.9, 0.999), 0.0, 1e-8, 1e9, 1e-5),
    (70001, 1e-4, (0.9, 0.999), 1e-2, 1e-8, 1e9, 1.0),
    (33333, 5e-5, (0.95, 0.98), 1e-4, 1e-10, 1e-3, 1e3),
]


def run_probe(case, parameters, gradients, threads=1):
    elements, lr, betas, decay, epsilon, max_norm, _ = case
    arguments = [elements, STEPS, repr(lr), *map(repr, betas), repr(decay), repr(epsilon), repr(max_norm), threads]
    output = subprocess.run([PROBE, *map(str, arguments)], input=parameters.tobytes() + gradients.tobytes(), capture_output=True, check=True).stdout
    flat = np.frombuffer(output[: 12 * elements], np.float32).reshape(3, elements)
    norms = np.frombuffer(output[12 * elements :], np.float64)
    assert norms.shape == (STEPS,)
    return flat, norms


def inputs(case):
    generator = np.random.default_rng(7)
    parameters = generator.standard_normal(case[0]).astype(np.float32)
    gradients = (case[6] * generator.standard_normal((STEPS, case[0]))).astype(np.float32)
    return parameters, gradients


def reference(case, parameters, gradients, fused):
    _, lr, betas, decay, epsilon, max_norm, _ = case
    parameter = torch.nn.Parameter(torch.from_numpy(parameters.copy()))
    optimizer = torch.optim.AdamW([parameter], lr=lr, betas=betas, weight_decay=decay, eps=epsilon, fused=fused)
    norms = []
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient.copy())
        norms.append(torch.nn.utils.clip_grad_norm_([parameter], max_norm).item())
        optimizer.step()
    state = optimizer.state[parameter]
    return torch.stack([parameter.detach(), state["exp_avg"], state["exp_avg_sq"]]).numpy(), np.array(norms)


def relative(got, want):
    return np.linalg.norm(got.astype(np.float64) - want.astype(np.float64)) / np.linalg.norm(want.astype(np.float64))


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}")
def test_twenty_steps_end_where_torch_ends(case, fused):
    torch.set_num_threads(1)
    parameters, gradients = inputs(case)
    got, norms = run_probe(case, parameters, gradients)
    want, want_norms = reference(case, parameters, gradients, fused)
    moved = relative(got[0] - parameters, want[0] - parameters)
    errors = [relative(g, w) for g, w in zip(got, want)]
    print(f"relative L2: parameters {errors[0]:.1e}, exp_avg {errors[1]:.1e}, exp_avg_sq {errors[2]:.1e}; way gone {moved:.1e}; "
          f"norm {np.max(np.abs(norms / want_norms - 1)):.1e}")
    if fused and norms.max() < case[5]:  # nothing clipped: the same kernel on the same numbers
        assert got.tobytes() == want.tobytes()
    # torch's norm, summed in fp32, is what differs by up to 1e-6, and with it the moments of a clipped gradient.
    assert errors[0] < 1e-6 and max(errors) < 3e-6
    assert np.max(np.abs(got[0] - want[0])) < 1e-6
    np.testing.assert_allclose(norms, want_norms, rtol=3e-6)
    exact = np.sqrt((gradients.astype(np.float64) ** 2).sum(axis=1))
    np.testing.assert_allclose(norms, exact, rtol=1e-14)


@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: f"{case[0]}")
def test_the_same_bits_again_and_the_norm_at_any_number_of_threads(case):
    parameters, gradients = inputs(case)
    first, norms = run_probe(case, parameters, gradients)
    again, norms_again = run_probe(case, parameters, gradients)
    assert first.tobytes() == again.tobytes() and norms.tobytes() == norms_again.tobytes()
    for threads in (2, 3, 4):
        state, other = run_probe(case, parameters, gradients, threads)
        state_again, _ = run_probe(case, parameters, gradients, threads)
        assert other.tobytes() == norms.tobytes()
        assert state.tobytes() == state_again.tobytes()
        print(f"{threads} threads: {np.count_nonzero(state != first)} of {state.size} values differ from one thread")
