# ccache, mold and a precompiled header; all of them only change how long a build takes.
option(LORASHARD_PCH "Precompile the large headers of LibTorch, which take most of the time of a file (400 MB in the build folder)" ON)
find_program(LORASHARD_CCACHE ccache)
if(LORASHARD_CCACHE)
  # Paths relative to the checkout, so that two checkouts of the same files share their objects; and what ccache asks for
  # to see through a precompiled header.
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env "CCACHE_BASEDIR=${CMAKE_SOURCE_DIR}" CCACHE_NOHASHDIR=1
      CCACHE_SLOPPINESS=pch_defines,time_macros ${LORASHARD_CCACHE})
endif()
find_program(LORASHARD_MOLD mold)
if(LORASHARD_MOLD)
  add_link_options(-fuse-ld=mold)
endif()

# lorashard_precompile(TARGET): compiles TARGET's files after the one precompiled header. It fits all of them because all have
# the flags of lorashard_options.
function(lorashard_precompile TARGET)
  if(NOT LORASHARD_PCH)
    return()
  endif()
  if(NOT TARGET lorashard_pch)
    file(GENERATE OUTPUT "${CMAKE_BINARY_DIR}/precompiled.cpp" CONTENT "// Only its precompiled header is used.\n")
    add_library(lorashard_pch OBJECT "${CMAKE_BINARY_DIR}/precompiled.cpp")
    target_link_libraries(lorashard_pch PRIVATE lorashard_options lorashard_torch Threads::Threads)
    target_precompile_headers(lorashard_pch PRIVATE <ATen/ATen.h> <torch/nn/module.h>)
    target_compile_options(lorashard_pch PRIVATE -fpch-preprocess)
  endif()
  target_compile_options(${TARGET} PRIVATE -fpch-preprocess)
  target_precompile_headers(${TARGET} REUSE_FROM lorashard_pch)
endfunction()
