// AdamW whose moments take one byte a parameter (Dettmers et al., 8-bit Optimizers via Block-wise Quantization): the
// update of bitsandbytes' AdamW8bit. ATen operations on the parameters' device, without host synchronisation.
#pragma once
#include "trainer/adamw.h"

namespace lorashard {

/// The 256 values a byte stands for, ascending, fp32 (bitsandbytes' create_dynamic_map): for numbers of any sign, or
/// not below 0.
at::Tensor dynamic_map(bool is_signed);

class AdamW8bit : public Optimizer {
 public:
  /// Tensors of fewer elements keep both moments in fp32, as in bitsandbytes.
  static constexpr int64_t kMinQuantized = 4096;
  static constexpr int64_t kBlock = 256;  ///< elements that share one scale; a block never holds two tensors' elements

  /// State: state1, state2, U8 [blocks, 256], and absmax1, absmax2, fp32 [blocks]; exp_avg and exp_avg_sq, fp32
  /// [elements of small tensors]. Tensors lie one after another, group by group; the last block of a tensor is filled
  /// up.
  AdamW8bit(at::Tensor parameters, std::vector<ParameterGroup> groups, const AdamWOptions& options);

 private:
  /// A range of elements of the parameters, and where its moments are.
  struct Piece {
    FlatTensor tensor;
    int64_t begin = 0;  ///< first element in the small moments, or first block
  };
  struct GroupPieces {
    std::vector<Piece> small, quantized;
    int64_t first_block = 0, num_blocks = 0;
  };
  void update(at::Tensor& gradient, const std::vector<double>& learning_rates) override;
  void update_small(const Piece& piece, const at::Tensor& gradient, double lr, double weight_decay);
  void update_quantized(const GroupPieces& pieces, const at::Tensor& gradient, double lr, double weight_decay);

  AdamWOptions options_;
  std::vector<GroupPieces> pieces_;  // of each group
  at::Tensor exp_avg_, exp_avg_sq_, state1_, state2_, absmax1_, absmax2_;
  at::Tensor map1_, map2_, middles1_, middles2_;  // what bytes mean, and where one byte's values end
};

}  // namespace lorashard
