# ccache and mold where they are installed; both only change how long a build takes.
find_program(LORASHARD_CCACHE ccache)
if(LORASHARD_CCACHE)
  # Paths relative to the checkout, so that two checkouts of the same files share their objects.
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env "CCACHE_BASEDIR=${CMAKE_SOURCE_DIR}" CCACHE_NOHASHDIR=1 ${LORASHARD_CCACHE})
endif()
find_program(LORASHARD_MOLD mold)
if(LORASHARD_MOLD)
  add_link_options(-fuse-ld=mold)
endif()
