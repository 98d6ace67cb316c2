#include "dist/sha256.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <vector>

#include "dist/error.h"

namespace lorashard {
namespace {

class Digest {
 public:
  Digest() : context_(EVP_MD_CTX_new(), &EVP_MD_CTX_free) {
    LORASHARD_CHECK(context_ != nullptr && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1,
                    "OpenSSL has no SHA-256");
  }
  void update(const void* bytes, size_t size) {
    LORASHARD_CHECK(EVP_DigestUpdate(context_.get(), bytes, size) == 1, "SHA-256 of {} bytes", size);
  }
  std::string hex() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    LORASHARD_CHECK(EVP_DigestFinal_ex(context_.get(), digest, &size) == 1 && size == 32, "SHA-256 of {} bytes", size);
    std::string text;
    for (unsigned int i = 0; i < size; ++i) {
      text += "0123456789abcdef"[digest[i] >> 4];
      text += "0123456789abcdef"[digest[i] & 15];
    }
    return text;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

std::string sha256(std::string_view bytes) {
  Digest digest;
  digest.update(bytes.data(), bytes.size());
  return digest.hex();
}

// Read in pieces, not mapped: a file that shrinks meanwhile is then a short file and not a SIGBUS.
std::string sha256_file(const std::filesystem::path& path) {
  int file = -1;
  do {
    file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  } while (file < 0 && errno == EINTR);
  if (file < 0) throw errno_error(fmt::format("hashing '{}'", path.string()), true);
  const std::unique_ptr<const int, void (*)(const int*)> closer(&file, [](const int* f) { close(*f); });
  Digest digest;
  std::vector<char> piece(size_t{1} << 20);
  while (true) {
    const ssize_t size = read(file, piece.data(), piece.size());
    if (size == 0) return digest.hex();
    if (size > 0) digest.update(piece.data(), static_cast<size_t>(size));
    if (size < 0 && errno != EINTR) throw errno_error(fmt::format("hashing '{}'", path.string()));
  }
}

}  // namespace lorashard
