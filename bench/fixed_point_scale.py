#!/usr/bin/env python3
"""How large gradients are, and what the fixed point of the reduction costs: the figures of docs/determinism.md.

    .venv/bin/python bench/fixed_point_scale.py RUN_DIR/trace.safetensors [--bits 40]

For a trace of a run with total_batch_size == train_batch_size (one micro-batch a step, so that a step's gradient is what
the reduction was given) and deterministic = false (so that it was not quantised already).
"""

import argparse
import re

import numpy as np
from safetensors import safe_open


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--bits", type=int, default=40, help="S of q = llrint(g * 2^S)")
    args = parser.parse_args()
    steps = {}
    with safe_open(args.trace, "np") as trace:
        for key in trace.keys():
            match = re.match(r"step(\d+)/grad/", key)
            if match:
                steps.setdefault(int(match[1]), []).append(key)
        magnitudes, errors, norms = [], [], []
        for step in sorted(steps):
            g = np.concatenate([trace.get_tensor(key).ravel() for key in steps[step]]).astype(np.float64)
            quantised = np.rint(g * 2.0**args.bits) / 2.0**args.bits
            norms.append(np.linalg.norm(g))
            errors.append(np.linalg.norm(quantised - g) / norms[-1])
            magnitudes.append(np.abs(g[g != 0]))
    m = np.concatenate(magnitudes)
    print(f"{len(steps)} steps, {len(m)} gradients that are not 0, {len(next(iter(steps.values())))} tensors a step")
    print(f"gradient norm: {min(norms):.3g} to {max(norms):.3g}")
    for p in (0.01, 0.1, 1, 50, 99, 100):
        print(f"  |g| at the {p:>6} percentile: {np.percentile(m, p):.3g}")
    print(f"S = {args.bits}: one unit is {2.0**-args.bits:.3g}; largest |g| * 2^S = {m.max() * 2.0**args.bits:.3g}, room for {2.0**(62 - args.bits):.3g} of gradient")
    print(f"  below half a unit (become 0): {100 * np.mean(m < 2.0**-(args.bits + 1)):.4f} %")
    print(f"  relative L2 error of a step's gradient: median {np.median(errors):.3g}, largest {max(errors):.3g}  (fp32 rounding itself: {2.0**-24:.3g})")


if __name__ == "__main__":
    main()
