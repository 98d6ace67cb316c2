// A liblorashard_cuda.so of another version, for the test that it is refused.
extern "C" const char* lorashard_cuda_api_version() { return "0.0.0/0"; }
extern "C" const void* lorashard_cuda_api() { return nullptr; }
