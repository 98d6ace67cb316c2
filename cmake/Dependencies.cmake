# Everything else, from Debian packages (quickstart.sh installs them). One library belongs to one folder.
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(MPI REQUIRED COMPONENTS CXX)        # dist
find_package(spdlog REQUIRED)                    # dist
find_package(OpenSSL REQUIRED)                   # dist (sha256)
find_package(HDF5 REQUIRED COMPONENTS C)         # data
pkg_check_modules(VIPS REQUIRED IMPORTED_TARGET vips)        # data
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash) # data
pkg_check_modules(RE2 REQUIRED IMPORTED_TARGET re2)          # models
pkg_check_modules(ICU REQUIRED IMPORTED_TARGET icu-uc)       # models
find_package(ZLIB REQUIRED)                      # models (the CLIP vocabulary comes gzipped)
find_package(nlohmann_json REQUIRED)             # any .cpp, never a header
find_package(tomlplusplus REQUIRED)              # trainer
find_package(Protobuf REQUIRED)                  # trainer (TensorBoard event files)
find_package(CLI11 REQUIRED)                     # launch
