// Runs the entry of a CPU package once: linked with its objects, for processors that the tests have as an emulator only.
//
// stdin: int64 words: the number of symbols, what dlc_sizes writes, inputs, outputs, chunks of constants; the bytes of
// the thread team's memory or 0; the symbols' sizes; the bytes of every input, output and chunk. Then the contents of
// inputs and chunks, and the team's memory as it begins. stdout: the outputs.
// Exit code 3: something behind an output or the workspace was written.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE = 64, OPAQUE_POINTER = 4, PATTERN = 0xA5 };

typedef struct {
  int32_t type_index, zero_padding;
  void* pointer;
} Any;  // TVMFFIAny

int __tvm_ffi_dlc_main(void* self, const Any* arguments, int32_t count, Any* result);
int __tvm_ffi_dlc_sizes(void* self, const Any* arguments, int32_t count, Any* result);
// Only in packages that share something out.
__attribute__((weak)) int __tvm_ffi_dlc_start(void* self, const Any* arguments, int32_t count, Any* result);
__attribute__((weak)) int __tvm_ffi_dlc_stop(void* self, const Any* arguments, int32_t count, Any* result);

void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < count; ++i) fputs(parts[i], stderr);
}

static void need(int ok, int code, const char* what) {
  if (ok) return;
  fprintf(stderr, "driver: %s\n", what);
  exit(code);
}

static void take(void* place, size_t size) { need(fread(place, 1, size, stdin) == size, 2, "the input ends too early"); }

// Aligned memory with a guard behind it.
static uint8_t* room(int64_t size) {
  uint8_t* found = aligned_alloc(LINE, (size + 2 * LINE - 1) / LINE * LINE + LINE);
  need(found != NULL, 2, "no memory");
  memset(found, PATTERN, size + LINE);
  return found;
}

static void guarded(const uint8_t* place, int64_t size) {
  for (int i = 0; i < LINE; ++i) need(place[size + i] == PATTERN, 3, "a byte behind an output was written");
}

static void call(int (*function)(void*, const Any*, int32_t, Any*), void* table) {
  Any argument = {OPAQUE_POINTER, 0, table}, result = {0, 0, NULL};
  need(function(NULL, &argument, 1, &result) == 0, 4, "the call failed");
}

int main(void) {
  int64_t head[6];
  take(head, sizeof head);
  const int64_t symbols = head[0], written = head[1], inputs = head[2], outputs = head[3], chunks = head[4];
  const int64_t team_bytes = head[5];
  const int64_t arrays = inputs + outputs + chunks;
  int64_t* sizes = calloc(symbols + written, sizeof *sizes);
  int64_t* bytes = calloc(arrays, sizeof *bytes);
  uint64_t* table = calloc(arrays + symbols + 4, sizeof *table);
  take(sizes, symbols * sizeof *sizes);
  take(bytes, arrays * sizeof *bytes);
  call(__tvm_ffi_dlc_sizes, sizes);
  for (int64_t i = 0; i < arrays; ++i) {
    uint8_t* place = room(bytes[i]);
    if (i < inputs || i >= inputs + outputs) take(place, bytes[i]);
    table[i] = (uintptr_t)place;
  }
  const int64_t workspace = sizes[symbols];
  uint8_t* scratch = room(workspace);
  table[arrays] = (uintptr_t)scratch;
  table[arrays + 2] = INT64_MAX;
  for (int64_t i = 0; i < symbols; ++i) table[arrays + 3 + i] = sizes[i];
  if (team_bytes) {
    need(__tvm_ffi_dlc_start != NULL, 2, "the package shares nothing out");
    uint8_t* team = room(team_bytes);
    take(team, team_bytes);
    call(__tvm_ffi_dlc_start, team);
    table[arrays + symbols + 3] = (uintptr_t)team;
    call(__tvm_ffi_dlc_main, table);
    call(__tvm_ffi_dlc_stop, team);
  } else {
    call(__tvm_ffi_dlc_main, table);
  }
  guarded(scratch, workspace);
  for (int64_t i = inputs; i < inputs + outputs; ++i) {
    guarded((const uint8_t*)table[i], bytes[i]);
    fwrite((const void*)table[i], 1, bytes[i], stdout);
  }
  return 0;
}
