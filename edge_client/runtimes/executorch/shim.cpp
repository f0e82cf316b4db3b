// A C interface to ExecuTorch, for ctypes: open a program from memory, ask for a tensor's shape, run a method.
//
// The wheel's Python bindings need torch; the C++ libraries beside them do not, and have no C interface. Everything
// that can fail leaves a sentence in `why` and returns null or -1. Tensors are passed as pointers and sizes in bytes,
// since shapes and types are the program's own. One thread at a time per program.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include <executorch/extension/data_loader/buffer_data_loader.h>
#include <executorch/extension/module/module.h>
#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>

using executorch::aten::Tensor;
using executorch::aten::TensorImpl;
using executorch::extension::BufferDataLoader;
using executorch::extension::Module;
using executorch::runtime::Error;

// The threadpool's library is in the wheel, its header is not.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

// ExecuTorch tells stderr much about the processor; what went wrong ends up in `why` as well.
std::string last_error;

void keep_errors(
    et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t, const char* message, size_t length) {
  if (level == et_pal_log_level_t::kError || level == et_pal_log_level_t::kFatal) last_error.assign(message, length);
}

int fail(char* why, size_t room, const std::string& what, Error error) {
  std::snprintf(why, room, "%s: %s %s", what.c_str(), to_string(error), last_error.c_str());
  last_error.clear();
  return -1;
}

}  // namespace

extern "C" {

static void seedmask_quiet() {
  static const bool once = executorch::runtime::register_pal(executorch::runtime::PalImpl::create(keep_errors, __FILE__));
  (void)once;
}

// How many threads share a step, for the whole process.
int seedmask_threads(uint32_t threads) {
  seedmask_quiet();
  auto* pool = executorch::extension::threadpool::get_threadpool();
  return pool != nullptr && pool->_unsafe_reset_threadpool(threads) ? 0 : -1;
}

// `data` is read in place until seedmask_close. Methods share their working memory: only one runs at a time.
Module* seedmask_open(const void* data, size_t size, char* why, size_t room) {
  executorch::runtime::runtime_init();
  seedmask_quiet();
  auto module = std::make_unique<Module>(
      std::make_unique<BufferDataLoader>(data, size), nullptr, nullptr, nullptr, nullptr, /*share_memory_arenas=*/true);
  const Error error = module->load(executorch::runtime::Program::Verification::InternalConsistency);
  if (error != Error::Ok) {
    fail(why, room, "the program cannot be loaded", error);
    return nullptr;
  }
  return module.release();
}

void seedmask_close(Module* module) { delete module; }

// Shape of an input (or output) of a method: its dimensions into `sizes`, their number as the result.
int seedmask_shape(
    Module* module, const char* method, int output, size_t index, int64_t* sizes, int most, char* why, size_t room) {
  auto meta = module->method_meta(method);
  if (!meta.ok()) return fail(why, room, std::string("method ") + method, meta.error());
  auto tensor = output ? meta->output_tensor_meta(index) : meta->input_tensor_meta(index);
  if (!tensor.ok()) return fail(why, room, std::string("a tensor of ") + method, tensor.error());
  const auto shape = tensor->sizes();
  if (static_cast<int>(shape.size()) > most) return fail(why, room, "dimensions", Error::InvalidArgument);
  for (size_t i = 0; i < shape.size(); ++i) sizes[i] = shape[i];
  return static_cast<int>(shape.size());
}

// Bytes that a method works in besides its inputs, outputs and what its delegates take.
int64_t seedmask_planned(Module* module, const char* method, char* why, size_t room) {
  auto meta = module->method_meta(method);
  if (!meta.ok()) return fail(why, room, std::string("method ") + method, meta.error());
  int64_t bytes = 0;
  for (size_t i = 0; i < meta->num_memory_planned_buffers(); ++i)
    bytes += meta->memory_planned_buffer_size(i).get();
  return bytes;
}

// Runs a method on `count_in` inputs, into `count_out` outputs.
int seedmask_run(
    Module* module, const char* name, void* const* inputs, const size_t* bytes_in, size_t count_in,
    void* const* outputs, const size_t* bytes_out, size_t count_out, char* why, size_t room) {
  const std::string method(name);
  Error error = module->load_method(method);
  if (error != Error::Ok) return fail(why, room, "method " + method + " cannot be loaded", error);
  auto meta = module->method_meta(method);
  if (!meta.ok()) return fail(why, room, "method " + method, meta.error());
  if (meta->num_inputs() != count_in || meta->num_outputs() != count_out)
    return fail(why, room, method + " has " + std::to_string(meta->num_inputs()) + " inputs and " +
                std::to_string(meta->num_outputs()) + " outputs", Error::InvalidArgument);
  auto ready = module->method(method);
  if (!ready.ok()) return fail(why, room, "method " + method, ready.error());
  for (size_t i = 0; i < count_in; ++i) {
    auto tensor = meta->input_tensor_meta(i);
    if (!tensor.ok() || tensor->nbytes() != bytes_in[i])
      return fail(why, room, "input " + std::to_string(i) + " of " + method + " has another size", Error::InvalidArgument);
    const auto shape = tensor->sizes();
    const auto order = tensor->dim_order();
    std::vector<executorch::aten::SizesType> sizes(shape.begin(), shape.end());
    std::vector<executorch::aten::DimOrderType> dims(order.begin(), order.end());
    std::vector<executorch::aten::StridesType> strides(shape.size());
    executorch::aten::StridesType step = 1;
    for (size_t at = dims.size(); at-- > 0; step *= sizes[dims[at]]) strides[dims[at]] = step;
    TensorImpl impl(tensor->scalar_type(), shape.size(), sizes.data(), inputs[i], dims.data(), strides.data());
    error = ready.get()->set_input(Tensor(&impl), i);
    if (error != Error::Ok) return fail(why, room, "input " + std::to_string(i) + " of " + method, error);
  }
  for (size_t i = 0; i < count_out; ++i) {
    error = ready.get()->set_output_data_ptr(outputs[i], bytes_out[i], i);
    if (error != Error::Ok) return fail(why, room, "output " + std::to_string(i) + " of " + method, error);
  }
  error = ready.get()->execute();
  return error == Error::Ok ? 0 : fail(why, room, method, error);
}

}  // extern "C"
