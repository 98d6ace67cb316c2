#include "trainer/first_use_pack.h"

#include "data/pack.h"
#include "dist/durable_file.h"
#include "dist/error.h"
#include "dist/log.h"

namespace lorashard {

std::filesystem::path first_use_pack(const std::filesystem::path& output_dir) { return output_dir / "pack"; }

void pack_on_first_use(const Recipe& recipe, const std::filesystem::path& output_dir) {
  const std::filesystem::path pack = first_use_pack(output_dir), remembered = output_dir / "pack.source";
  const std::string source = std::filesystem::canonical(recipe.data.train_data_dir).string();
  if (is_pack(pack)) {
    const std::string before = std::filesystem::exists(remembered) ? read_file(remembered) : "an unknown folder";
    if (before != source) {
      throw Error(ErrorKind::usage,
                  fmt::format("opening the training data: '{}' was packed from '{}', and data.train_data_dir is '{}' now",
                              pack.string(), before, source),
                  "choose another output_dir, or remove that pack to make it anew");
    }
    log::info("training on '{}', packed from '{}' at the first start; changes made there since don't count", pack.string(), source);
    return;
  }
  log::info("'{}' is a folder of pictures: packing it into '{}'", source, pack.string());
  PackOptions options;
  options.folder.image_column = recipe.data.image_column;
  options.folder.caption_column = recipe.data.caption_column;
  options.on_bad_image = recipe.data.on_bad_image == "skip" ? OnBadImage::skip : OnBadImage::stop;
  write_durably(remembered, source);
  pack_images(recipe.data.train_data_dir, pack, options);
}

}  // namespace lorashard
