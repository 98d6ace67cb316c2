# The CUDA side, against the headers and libraries of NVIDIA's wheels: no CUDA toolkit, no nvcc.
set(_missing "")
function(lorashard_find_in_wheels VARIABLE WHEEL PATTERN)
  file(GLOB _found "${_site_packages}/${PATTERN}")
  if(_found)
    list(GET _found 0 _first)
    set(${VARIABLE} "${_first}" PARENT_SCOPE)
  else()
    set(_missing "${_missing}\n  ${PATTERN} (wheel ${WHEEL})" PARENT_SCOPE)
  endif()
endfunction()
lorashard_find_in_wheels(_cudart_header nvidia-cuda-runtime nvidia/cu13/include/cuda_runtime_api.h)
lorashard_find_in_wheels(_cudart nvidia-cuda-runtime "nvidia/cu13/lib/libcudart.so.*")
lorashard_find_in_wheels(_nccl_header nvidia-nccl-cu13 nvidia/nccl/include/nccl.h)
lorashard_find_in_wheels(_nccl nvidia-nccl-cu13 "nvidia/nccl/lib/libnccl.so.*")
lorashard_find_in_wheels(_cublas nvidia-cublas "nvidia/cu13/lib/libcublas.so.*")
lorashard_find_in_wheels(_cudnn nvidia-cudnn-cu13 "nvidia/cudnn/lib/libcudnn.so.*")
lorashard_find_in_wheels(_torch_cuda torch torch/lib/libtorch_cuda.so)
lorashard_find_in_wheels(_c10_cuda torch torch/lib/libc10_cuda.so)
if(_missing AND LORASHARD_CUDA STREQUAL AUTO)
  message(STATUS "CUDA side: left out, NVIDIA's wheels are not all in '${_site_packages}'")
  set(LORASHARD_CUDA OFF)
  return()
elseif(_missing)
  message(FATAL_ERROR "LORASHARD_CUDA: missing in '${_site_packages}':${_missing}\n"
    "hint: ${LORASHARD_PYTHON_ENV}/bin/pip install -r ${CMAKE_SOURCE_DIR}/requirements-cuda.txt")
endif()

add_library(lorashard_torch_cuda INTERFACE)
target_include_directories(lorashard_torch_cuda SYSTEM INTERFACE
  "${_site_packages}/nvidia/cu13/include" "${_site_packages}/nvidia/nccl/include")
target_link_libraries(lorashard_torch_cuda INTERFACE lorashard_torch
  "-Wl,--no-as-needed" "${_torch_cuda}" "${_c10_cuda}" "${_cudart}" "${_nccl}" "-Wl,--as-needed")
# What these libraries need themselves; they find it by their own run paths, the linker by these.
foreach(_folder cu13 nccl cudnn cusparselt nvshmem)
  target_link_options(lorashard_torch_cuda INTERFACE
    "-Wl,-rpath,${_site_packages}/nvidia/${_folder}/lib" "-Wl,-rpath-link,${_site_packages}/nvidia/${_folder}/lib")
endforeach()
message(STATUS "CUDA side: ${_nccl}")
