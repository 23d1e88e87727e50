/* The part of NVIDIA's driver API that dlc uses, on the memory of the host.
 *
 * Every call is written to a log. Calls that need a current context fail without one, frees of what is not allocated
 * fail, and a launch is handed to a function that the test registers. fake_fail makes a call fail. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
typedef void (*launch_fn)(const char* name, const unsigned* sizes, void** parameters);

enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_IMAGE = 200, INVALID_CONTEXT = 201,
       NO_BINARY_FOR_GPU = 209, INVALID_PTX = 218, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700 };

static char record[1 << 20];
static char failing[64];
static int failing_code, devices = 1, live_events, live_handles;
static launch_fn on_launch;
static struct { void* address; size_t size; } blocks[4096];
static __thread void* current;
static int primary;

static CUresult called(const char* name, const char* details, int needs_context) {
  size_t used = strlen(record);
  snprintf(record + used, sizeof record - used, "%s%s\n", name, details);
  if (strcmp(name, failing) == 0) return failing_code;
  return needs_context && !current ? INVALID_CONTEXT : 0;
}
#define CALLED(name, needs_context, ...)                            \
  char details[256] = "";                                           \
  snprintf(details, sizeof details, __VA_ARGS__);                   \
  CUresult failed = called(name, details, needs_context);           \
  if (failed) return failed

/* --- for the tests --- */
const char* fake_log(void) { return record; }
void fake_reset(launch_fn launch) {
  record[0] = failing[0] = 0;
  on_launch = launch;
  devices = 1;
  current = NULL;
}
void fake_devices(int count) { devices = count; }
void fake_fail(const char* name, int code) { snprintf(failing, sizeof failing, "%s", name); failing_code = code; }
int fake_live(void) {
  int count = live_events + live_handles + primary;
  for (int i = 0; i < 4096; i++) count += blocks[i].address != NULL;
  return count;
}
size_t fake_size(void* address) {
  for (int i = 0; i < 4096; i++)
    if (blocks[i].address == address) return blocks[i].size;
  return 0;
}

/* --- the driver --- */
CUresult cuInit(unsigned flags) {
  CALLED("cuInit", 0, " %u", flags);
  return devices ? 0 : NO_DEVICE;
}
CUresult cuGetErrorName(CUresult code, const char** name) {
  static const struct { int code; const char* name; } names[] = {
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"}, {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"}, {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU"}, {INVALID_PTX, "CUDA_ERROR_INVALID_PTX"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"}, {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"}};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (names[i].code == code) return *name = names[i].name, 0;
  return INVALID_VALUE;
}
CUresult cuDriverGetVersion(int* version) { return *version = 12040, 0; }
CUresult cuDeviceGetCount(int* count) { return *count = devices, 0; }
CUresult cuDeviceGet(int* device, int ordinal) { return *device = ordinal + 7, 0; }
CUresult cuDeviceGetName(char* name, int length, int device) {
  snprintf(name, (size_t)length, "Fake %d", device);
  return 0;
}
CUresult cuDeviceGetAttribute(int* value, int attribute, int device) {
  if (device < 7) return INVALID_VALUE;
  *value = attribute == 75 ? 8 : attribute == 76 ? 6 : -1;
  return 0;
}
CUresult cuDevicePrimaryCtxRetain(void** context, int device) {
  CALLED("cuDevicePrimaryCtxRetain", 0, " %d", device);
  primary++;
  *context = &primary;
  return 0;
}
CUresult cuDevicePrimaryCtxRelease_v2(int device) {
  CALLED("cuDevicePrimaryCtxRelease_v2", 0, " %d", device);
  return primary-- > 0 ? 0 : INVALID_CONTEXT;
}
CUresult cuCtxSetCurrent(void* context) {
  current = context;
  return 0;
}
CUresult cuModuleLoadData(void** module, const void* image) {
  int cubin = memcmp(image, "\x7f" "ELF", 4) == 0;
  CALLED(cubin ? "cuModuleLoadData cubin" : "cuModuleLoadData PTX", 1, "%s", "");
  if (!cubin && !strstr(image, ".target")) return INVALID_PTX;
  live_handles++;
  *module = &live_handles;
  return 0;
}
CUresult cuModuleUnload(void* module) {
  CALLED("cuModuleUnload", 1, "%s", "");
  live_handles--;
  return module ? 0 : INVALID_VALUE;
}
CUresult cuModuleGetFunction(void** function, void* module, const char* name) {
  CALLED("cuModuleGetFunction", 1, " %s", name);
  *function = strdup(name); /* as long as the process */
  return module ? 0 : INVALID_VALUE;
}
CUresult cuMemAlloc_v2(uint64_t* address, size_t size) {
  CALLED("cuMemAlloc_v2", 1, " %zu", size);
  if (!size) return INVALID_VALUE;
  for (int i = 0; i < 4096; i++)
    if (!blocks[i].address) {
      void* block = aligned_alloc(256, (size + 255) / 256 * 256);
      memset(block, 0xA5, size);
      blocks[i].address = block;
      blocks[i].size = size;
      *address = (uint64_t)(uintptr_t)block;
      return 0;
    }
  return OUT_OF_MEMORY;
}
CUresult cuMemFree_v2(uint64_t address) {
  CALLED("cuMemFree_v2", 1, "%s", "");
  for (int i = 0; i < 4096; i++)
    if (address && blocks[i].address == (void*)(uintptr_t)address) {
      free(blocks[i].address);
      blocks[i].address = NULL;
      return 0;
    }
  return INVALID_VALUE;
}
CUresult cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t size, void* stream) {
  CALLED("cuMemcpyHtoDAsync_v2", 1, " %zu", size);
  if (!stream || fake_size((void*)(uintptr_t)to) < size) return INVALID_VALUE;
  memcpy((void*)(uintptr_t)to, from, size);
  return 0;
}
CUresult cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t size, void* stream) {
  CALLED("cuMemcpyDtoHAsync_v2", 1, " %zu", size);
  if (!stream || fake_size((void*)(uintptr_t)from) < size) return INVALID_VALUE;
  memcpy(to, (void*)(uintptr_t)from, size);
  return 0;
}
CUresult cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, void* stream, void** parameters, void** extra) {
  CALLED("cuLaunchKernel", 1, " %s (%u, %u, %u) (%u, %u, %u) %u", (char*)function, gx, gy, gz, bx, by, bz, shared);
  if (!stream || extra || !gx || !gy || !gz) return INVALID_VALUE;
  const unsigned sizes[] = {gx, gy, gz, bx, by, bz};
  if (on_launch) on_launch(function, sizes, parameters);
  return 0;
}
CUresult cuStreamCreate(void** stream, unsigned flags) {
  CALLED("cuStreamCreate", 1, " %u", flags);
  live_handles++;
  *stream = &current;
  return 0;
}
CUresult cuStreamSynchronize(void* stream) {
  CALLED("cuStreamSynchronize", 1, "%s", "");
  return stream ? 0 : INVALID_VALUE;
}
CUresult cuStreamDestroy_v2(void* stream) {
  CALLED("cuStreamDestroy_v2", 1, "%s", "");
  live_handles--;
  return stream ? 0 : INVALID_VALUE;
}
CUresult cuEventCreate(void** event, unsigned flags) {
  CALLED("cuEventCreate", 1, " %u", flags);
  live_events++;
  *event = &live_events;
  return 0;
}
CUresult cuEventRecord(void* event, void* stream) { return event && stream ? 0 : INVALID_VALUE; }
CUresult cuEventSynchronize(void* event) { return event ? 0 : INVALID_VALUE; }
CUresult cuEventElapsedTime(float* milliseconds, void* begin, void* end) {
  *milliseconds = 2.5f;
  return begin && end ? 0 : INVALID_VALUE;
}
CUresult cuEventDestroy_v2(void* event) {
  live_events--;
  return event ? 0 : INVALID_VALUE;
}
