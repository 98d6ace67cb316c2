# lorashard_options: the flags of our own code. Third-party headers come in as SYSTEM and stay silent.
add_library(lorashard_options INTERFACE)
target_compile_options(lorashard_options INTERFACE
  -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wimplicit-fallthrough
  # False alarms of gcc 12 at -O3 on std::string and std::vector (its bugs 105651, 105562).
  -Wno-restrict -Wno-maybe-uninitialized
  # Same bits from the same source: no contraction that depends on what the optimizer saw.
  -ffp-contract=off
  # In every target, so that one precompiled header fits them all.
  -fPIC -pthread)
target_include_directories(lorashard_options INTERFACE "${CMAKE_SOURCE_DIR}")
if(LORASHARD_SANITIZE)
  target_compile_options(lorashard_options INTERFACE -fsanitize=${LORASHARD_SANITIZE} -fno-omit-frame-pointer)
  target_link_options(lorashard_options INTERFACE -fsanitize=${LORASHARD_SANITIZE})
endif()
