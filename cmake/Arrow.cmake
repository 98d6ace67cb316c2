# Apache Arrow's C++ libraries out of the pyarrow wheel, which has their headers: the parquet reader is linked to them, nothing else.
set(_arrow_dir "${_site_packages}/pyarrow")
set(_arrow_libraries "")
foreach(_name parquet arrow)
  file(GLOB _found "${_arrow_dir}/lib${_name}.so.*")
  list(LENGTH _found _count)
  if(NOT _count EQUAL 1)
    message(FATAL_ERROR "LORASHARD_PARQUET: expected one lib${_name}.so.* in '${_arrow_dir}', found ${_count}\n"
      "hint: ${LORASHARD_PYTHON_ENV}/bin/pip install --no-deps -r ${CMAKE_SOURCE_DIR}/requirements.txt, "
      "or -DLORASHARD_PARQUET=OFF to do without parquet")
  endif()
  list(APPEND _arrow_libraries "${_found}")
endforeach()
add_library(lorashard_arrow INTERFACE)
target_include_directories(lorashard_arrow SYSTEM INTERFACE "${_arrow_dir}/include")
target_link_libraries(lorashard_arrow INTERFACE ${_arrow_libraries})
target_link_options(lorashard_arrow INTERFACE "-Wl,-rpath,${_arrow_dir}")
message(STATUS "Arrow: ${_arrow_dir}")
