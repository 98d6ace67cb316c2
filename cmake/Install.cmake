# cmake --install BUILD --prefix DIR: a folder that can be moved to any x86-64 node with PyTorch, and run there.
set(_bundle_arguments "\"\${CMAKE_INSTALL_PREFIX}\" \"$<TARGET_FILE:lorashard>\"")
if(LORASHARD_CUDA)
  string(APPEND _bundle_arguments " \"$<TARGET_FILE:lorashard_cuda>\" \"${CMAKE_BINARY_DIR}/gpu_tests\"")
endif()
install(CODE "
  execute_process(COMMAND \"${LORASHARD_PYTHON_ENV}/bin/python\" \"${CMAKE_SOURCE_DIR}/cmake/make_bundle.py\" ${_bundle_arguments}
                  COMMAND_ERROR_IS_FATAL ANY)")
