# LibTorch out of the torch wheel, as imported targets of our own: the wheel's TorchConfig.cmake asks for nvcc,
# which nothing here needs. Only libtorch_cpu and libc10 are linked; the CUDA side is loaded at run time.
file(GLOB _torch_dirs "${LORASHARD_PYTHON_ENV}/lib/python3*/site-packages/torch")
if(NOT _torch_dirs)
  message(FATAL_ERROR "LibTorch: no torch wheel in '${LORASHARD_PYTHON_ENV}'\n"
    "hint: run ./quickstart.sh, or give -DLORASHARD_PYTHON_ENV=DIR of an environment with torch==2.11.0")
endif()
list(GET _torch_dirs 0 _torch_dir)
file(REAL_PATH "${_torch_dir}" LORASHARD_TORCH_DIR)
get_filename_component(_site_packages "${LORASHARD_TORCH_DIR}" DIRECTORY)

# torch brings fmt 12 headers of its own, which would shadow the fmt we link: put ours first.
find_package(fmt REQUIRED)
file(MAKE_DIRECTORY "${CMAKE_BINARY_DIR}/fmt_first")
find_path(_fmt_include fmt/core.h PATHS /usr/include NO_DEFAULT_PATH REQUIRED)
file(CREATE_LINK "${_fmt_include}/fmt" "${CMAKE_BINARY_DIR}/fmt_first/fmt" SYMBOLIC)
add_library(lorashard_fmt INTERFACE)
target_include_directories(lorashard_fmt SYSTEM BEFORE INTERFACE "${CMAKE_BINARY_DIR}/fmt_first")
target_link_libraries(lorashard_fmt INTERFACE fmt::fmt)

foreach(_name c10 torch_cpu)
  add_library(lorashard_${_name} SHARED IMPORTED)
  set_target_properties(lorashard_${_name} PROPERTIES IMPORTED_LOCATION "${LORASHARD_TORCH_DIR}/lib/lib${_name}.so")
endforeach()
add_library(lorashard_torch INTERFACE)
target_include_directories(lorashard_torch SYSTEM INTERFACE "${CMAKE_BINARY_DIR}/fmt_first"
  "${LORASHARD_TORCH_DIR}/include" "${LORASHARD_TORCH_DIR}/include/torch/csrc/api/include")
target_link_libraries(lorashard_torch INTERFACE lorashard_fmt lorashard_torch_cpu lorashard_c10)
# libtorch_cpu needs libcudart and libcupti even where no GPU is: they lie beside it in the environment.
target_link_options(lorashard_torch INTERFACE
  "-Wl,-rpath,${LORASHARD_TORCH_DIR}/lib" "-Wl,-rpath,${_site_packages}/nvidia/cu13/lib"
  "-Wl,-rpath-link,${_site_packages}/nvidia/cu13/lib")
message(STATUS "LibTorch: ${LORASHARD_TORCH_DIR}")
