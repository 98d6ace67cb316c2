// optimizer_probe IN.safetensors OUT.safetensors: runs clip_gradient and an optimizer for
// tests/oracle/test_optimizer.py. IN: parameters [P], gradients [steps, P], fp32; metadata "case" is JSON: recipe
// (overrides of [optimizer] and [ema]), groups (name, learning_rate, weight_decay, shapes), max_norm, threads,
// restart_at (a step before which another optimizer goes on from the state, or -1). OUT: parameters and average [steps,
// P] after each step, norms F64 [steps], state/NAME after the last.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/core.h>

#include <cstdio>
#include <exception>
#include <nlohmann/json.hpp>

#include "trainer/clip_gradient.h"
#include "trainer/ema.h"
#include "trainer/make_optimizer.h"

namespace {

using namespace lorashard;
using Json = nlohmann::json;

std::vector<ParameterGroup> groups_of(const Json& json) {
  std::vector<ParameterGroup> groups;
  int64_t offset = 0;
  for (const Json& item : json) {
    ParameterGroup group{.name = item.at("name"),
                         .learning_rate = item.at("learning_rate"),
                         .weight_decay = item.at("weight_decay"),
                         .tensors = {}};
    for (const Json& sizes : item.at("shapes")) {
      group.tensors.push_back({offset, sizes.get<std::vector<int64_t>>()});
      offset += group.tensors.back().numel();
    }
    groups.push_back(group);
  }
  return groups;
}

Recipe recipe_of(const Json& overrides) {
  const std::string required =
      "output_dir = \"x\"\n[model]\npretrained_model_name_or_path = \"x\"\n[data]\ntrain_data_dir = \"x\"\n"
      "[train]\nmax_train_steps = 1\n";
  return parse_recipe(required, "case", overrides.get<std::vector<std::string>>());
}

StateDict run(const SafetensorsFile& in) {
  const Json json = Json::parse(in.metadata().at("case"));
  at::set_num_threads(json.at("threads"));
  const Recipe recipe = recipe_of(json.at("recipe"));
  const Recipe::Optimizer& options = recipe.optimizer;
  const std::vector<ParameterGroup> groups = groups_of(json.at("groups"));
  std::vector<double> lrs;
  for (const ParameterGroup& group : groups) lrs.push_back(group.learning_rate);
  const at::Tensor parameters = in.tensor("parameters").clone(), gradients = in.tensor("gradients");
  auto optimizer = make_optimizer(options, parameters, groups);
  Ema ema(parameters, recipe.ema);
  std::vector<at::Tensor> after, averages;
  std::vector<double> norms;
  for (int64_t step = 0; step < gradients.size(0); ++step) {
    if (step == json.at("restart_at").get<int64_t>()) {
      auto next = make_optimizer(options, parameters, groups);
      next->load(optimizer->state(), optimizer->updates());
      optimizer = std::move(next);
    }
    at::Tensor gradient = gradients[step].clone();
    norms.push_back(clip_gradient(gradient, json.at("max_norm")));
    optimizer->step(gradient, lrs);
    ema.step(parameters, optimizer->updates());
    after.push_back(parameters.clone());
    averages.push_back(ema.state().tensors.at("parameters").clone());
  }
  StateDict out = {
      {"parameters", at::stack(after)}, {"average", at::stack(averages)}, {"norms", at::tensor(norms, at::kDouble)}};
  for (const auto& [name, tensor] : optimizer->state().tensors) out["state/" + name] = tensor;
  for (const auto& [name, number] : optimizer->state().scalars)
    out["state/" + name] = std::visit([](auto value) { return at::scalar_tensor(double(value), at::kDouble); }, number);
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    write_safetensors(argv[2], run(SafetensorsFile(argv[1])));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
