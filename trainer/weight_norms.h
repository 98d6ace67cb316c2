// Max-norm regularisation of an adapter (scale_weight_norms, apply_max_norm_regularization() of kohya's sd-scripts). Called after an
// update by train_step().
#pragma once
#include "models/lora.h"

namespace lorashard {

/// Where the norm of a layer's change, scale * up * down, is larger than `max_norm`, scales both matrices by the same factor, so that
/// it is `max_norm`. Makes the host wait for nothing. Needs an allocated adapter without DoRA.
void limit_weight_norms(const LoraAdapter& adapter, double max_norm);

}  // namespace lorashard
