#include "models/adapter_alpha.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <regex>

#include "dist/error.h"

namespace lorashard {
namespace {

using Json = nlohmann::json;

[[noreturn]] void refuse(const std::string& what, const std::string& fault) {
  throw Error(ErrorKind::bad_data, fmt::format("reading adapter '{}': {}", what, fault));
}

/// peft's get_pattern_key: the key as a regular expression is the path's end, after a dot or whole.
double alpha_for(const Json& config, const std::string& path, double otherwise, const std::string& what) {
  const auto patterns = config.find("alpha_pattern");
  if (patterns == config.end() || !patterns->is_object()) return otherwise;
  for (const auto& [pattern, alpha] : patterns->items()) {
    try {
      if (alpha.is_number() && std::regex_match(path, std::regex("(.*\\.)?(" + pattern + ")")))
        return alpha.get<double>();
    } catch (const std::regex_error& error) {
      refuse(what, fmt::format("alpha_pattern '{}' is no regular expression: {}", pattern, error.what()));
    }
  }
  return otherwise;
}

void apply_config(const Json& config, const std::string& component, Adapter& adapter, const std::string& what) {
  if (config.value("fan_in_fan_out", false)) refuse(what, "its config has fan_in_fan_out, which no layer here has");
  const char* const key = config.contains("lora_alpha") ? "lora_alpha" : "alpha";  // LoraConfig, LoHaConfig
  const auto alpha = config.find(key);
  if (alpha == config.end() || !alpha->is_number()) return;
  const bool rslora = config.value("use_rslora", false);
  for (AdapterModule& module : adapter.modules) {
    if (module.alpha || (!component.empty() && module.component != component)) continue;
    double value = alpha_for(config, module.path, alpha->get<double>(), what);
    if (rslora) value *= std::sqrt(static_cast<double>(module.rank()));
    module.alpha = value;
  }
}

Json parse(const std::string& text, const std::string& what, const char* name) {
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) refuse(what, fmt::format("its {} is no JSON object", name));
  return json;
}

}  // namespace

void set_alphas(Adapter& adapter, const std::string& config_json, const std::string& what) try {
  if (!config_json.empty()) {
    const Json config = parse(config_json, what, "adapter_config.json");
    const std::string type = config.value("peft_type", "LORA");
    if (type != "LORA" && type != "LOHA" && type != "LOKR")
      refuse(what, fmt::format("peft_type '{}'; LORA, LOHA and LOKR are read", type));
    apply_config(config, "", adapter, what);
  }
  const auto metadata = adapter.metadata.find("lora_adapter_metadata");
  if (metadata == adapter.metadata.end()) return;
  // One object with keys "unet.lora_alpha", "text_encoder.r", ...
  const Json all = parse(metadata->second, what, "lora_adapter_metadata");
  for (const char* component : {"unet", "text_encoder", "text_encoder_2"}) {
    Json config = Json::object();
    const std::string prefix = std::string(component) + ".";
    for (const auto& [key, value] : all.items())
      if (key.starts_with(prefix)) config[key.substr(prefix.size())] = value;
    apply_config(config, component, adapter, what);
  }
} catch (const Json::exception& error) {
  refuse(what, fmt::format("its config: {}", error.what()));
}

}  // namespace lorashard
