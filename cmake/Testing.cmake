# How a test becomes a ctest entry.
find_package(GTest REQUIRED)
include(GoogleTest)

set(LORASHARD_PYTHON "${LORASHARD_PYTHON_ENV}/bin/python")
# mpirun refuses root and more ranks than cores unless told otherwise; both are usual where tests run.
set(LORASHARD_MPIRUN ${MPIEXEC_EXECUTABLE} --allow-run-as-root --oversubscribe --bind-to none)
# A rank that waits gives its core away: on a busy machine spinning makes four ranks take four times as long.
set(LORASHARD_TEST_ENV
  "LORASHARD=${CMAKE_BINARY_DIR}/lorashard;LORASHARD_BUILD_DIR=${CMAKE_BINARY_DIR};LORASHARD_SOURCE_DIR=${CMAKE_SOURCE_DIR};OMP_NUM_THREADS=1;OMPI_MCA_mpi_yield_when_idle=1;PYTHONDONTWRITEBYTECODE=1;HF_HUB_OFFLINE=1")

# lorashard_test_folder(NAME LINK...): tests/NAME/*_test.cpp become one program, each TEST a ctest entry labelled
# `unit`; tests/NAME/*_mpi_test.cpp become a second one, run whole under mpirun with 2, 3 and 4 ranks, labelled `mpi`.
function(lorashard_test_folder NAME)
  file(GLOB _mpi CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/${NAME}/*_mpi_test.cpp")
  file(GLOB _unit CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/${NAME}/*_test.cpp")
  if(_mpi)
    list(REMOVE_ITEM _unit ${_mpi})
  endif()
  if(_unit)
    add_executable(${NAME}_tests ${_unit})
    target_link_libraries(${NAME}_tests PRIVATE ${ARGN} lorashard_test_support GTest::gmock GTest::gtest_main)
    lorashard_precompile(${NAME}_tests)
    gtest_discover_tests(${NAME}_tests TEST_PREFIX "${NAME}." DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 600
      PROPERTIES LABELS unit)
    # gtest_discover_tests takes a list apart, so the environment is set afterwards, on the tests it found.
    set(_environment "${CMAKE_CURRENT_BINARY_DIR}/${NAME}_tests_environment.cmake")
    file(WRITE "${_environment}" "foreach(_test IN LISTS ${NAME}_tests_TESTS)
  set_tests_properties(\"\${_test}\" PROPERTIES ENVIRONMENT \"${LORASHARD_TEST_ENV}\")
endforeach()
")
    set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES "${_environment}")
  endif()
  if(_mpi)
    add_executable(${NAME}_mpi_tests ${_mpi} "${CMAKE_CURRENT_SOURCE_DIR}/support/mpi_main.cpp")
    target_link_libraries(${NAME}_mpi_tests PRIVATE ${ARGN} lorashard_test_support GTest::gmock GTest::gtest)
    lorashard_precompile(${NAME}_mpi_tests)
    foreach(_ranks 2 3 4)
      add_test(NAME ${NAME}.mpi.${_ranks}_ranks COMMAND ${LORASHARD_MPIRUN} -n ${_ranks} $<TARGET_FILE:${NAME}_mpi_tests>)
      set_tests_properties(${NAME}.mpi.${_ranks}_ranks PROPERTIES
        LABELS mpi ENVIRONMENT "${LORASHARD_TEST_ENV}" PROCESSORS ${_ranks} TIMEOUT 300)
    endforeach()
  endif()
endfunction()

# lorashard_pytest_folder(NAME LABEL): every tests/NAME/test_*.py is one ctest entry, run by pytest in the private
# environment, with the program's path in $LORASHARD and the build folder in $LORASHARD_BUILD_DIR. Each keeps PROCESSORS cores busy.
# Those in LORASHARD_LONG_FILES ("faults/test_network", ...) run where LORASHARD_LONG_TESTS=1 was set when cmake ran; else ctest lists
# them as disabled.
function(lorashard_pytest_folder NAME LABEL PROCESSORS)
  file(GLOB _files CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/${NAME}/test_*.py")
  foreach(_file ${_files})
    get_filename_component(_stem "${_file}" NAME_WE)
    add_test(NAME ${NAME}.${_stem} COMMAND ${LORASHARD_PYTHON} -m pytest -q -p no:cacheprovider "${_file}")
    set_tests_properties(${NAME}.${_stem} PROPERTIES LABELS ${LABEL} ENVIRONMENT "${LORASHARD_TEST_ENV}" PROCESSORS ${PROCESSORS} TIMEOUT 1800)
    if("${NAME}/${_stem}" IN_LIST LORASHARD_LONG_FILES AND NOT "$ENV{LORASHARD_LONG_TESTS}" STREQUAL "1")
      set_tests_properties(${NAME}.${_stem} PROPERTIES DISABLED ON)
    endif()
  endforeach()
endfunction()

# lorashard_sanitized_library(GROUP FILES...): lorashard_sanitized, the product's readers of files from elsewhere, compiled a second time,
# with ASan and UBSan. Only what they need, each group of FILES as one, which is four times as fast; without the precompiled header, whose
# flags differ. In a build that is sanitized as a whole, the usual libraries.
function(lorashard_sanitized_library)
  if(LORASHARD_SANITIZE)
    add_library(lorashard_sanitized INTERFACE)
    target_link_libraries(lorashard_sanitized INTERFACE lorashard_test_support)
    return()
  endif()
  add_library(lorashard_sanitized STATIC)
  math(EXPR _last "${ARGC} - 1")
  foreach(_group_at RANGE 0 ${_last} 2)
    math(EXPR _files_at "${_group_at} + 1")
    list(TRANSFORM ARGV${_files_at} PREPEND "${CMAKE_SOURCE_DIR}/" OUTPUT_VARIABLE _files)
    target_sources(lorashard_sanitized PRIVATE ${_files})
    set_source_files_properties(${_files} TARGET_DIRECTORY lorashard_sanitized PROPERTIES UNITY_GROUP "${ARGV${_group_at}}")
  endforeach()
  set_target_properties(lorashard_sanitized PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
  target_include_directories(lorashard_sanitized SYSTEM PRIVATE ${HDF5_INCLUDE_DIRS})
  target_compile_definitions(lorashard_sanitized PRIVATE SPDLOG_FMT_EXTERNAL "LORASHARD_VERSION=\"${PROJECT_VERSION}\"")
  target_link_libraries(lorashard_sanitized
    PUBLIC lorashard_options lorashard_torch Threads::Threads nlohmann_json::nlohmann_json
    PRIVATE ${HDF5_C_LIBRARIES} PkgConfig::VIPS PkgConfig::XXHASH spdlog::spdlog OpenSSL::Crypto tomlplusplus::tomlplusplus)
  # gcc's bug 70413: what an included .cpp file has for itself alone, it takes for a header's.
  target_compile_options(lorashard_sanitized PRIVATE -Wno-subobject-linkage)
  # A finding of UBSan must end the program to be seen.
  target_compile_options(lorashard_sanitized PUBLIC
    -O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
  target_link_options(lorashard_sanitized PUBLIC -fsanitize=address,undefined)
endfunction()
