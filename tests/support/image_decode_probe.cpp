// image_decode_probe OUT_DIR FILE...: decodes each FILE; writes OUT_DIR/<i>.rgb and prints "<i> ok HEIGHT WIDTH", or
// prints
// "<i> error KIND MESSAGE" for those that throw.
#include <cstdio>
#include <fstream>
#include <span>
#include <string>

#include "data/image.h"
#include "dist/durable_file.h"
#include "dist/error.h"

int main(int argc, char** argv) {
  using lorashard::Error, lorashard::Image;
  for (int i = 2; i < argc; ++i) {
    try {
      const std::string bytes = lorashard::read_file(argv[i]);
      const Image image =
          lorashard::decode_image({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, argv[i]);
      std::ofstream out(std::string(argv[1]) + "/" + std::to_string(i - 2) + ".rgb", std::ios::binary);
      out.write(reinterpret_cast<const char*>(image.rgb.data()), static_cast<std::streamsize>(image.rgb.size()));
      std::printf("%d ok %lld %lld\n", i - 2, static_cast<long long>(image.height),
                  static_cast<long long>(image.width));
    } catch (const Error& error) {
      std::printf("%d error %d %s\n", i - 2, lorashard::exit_code(error.kind()), error.message().c_str());
    }
  }
}
