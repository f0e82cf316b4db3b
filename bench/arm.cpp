// One method of an ExecuTorch program by the device's C interface: `arm PROGRAM METHOD INPUTS OUTPUT_BYTES...`, reading
// METHOD.in0, METHOD.in1, ... and writing METHOD.out0, ... (bench/arm.py).
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

struct Module;
extern "C" {
Module* seedmask_open(const void*, size_t, char*, size_t);
int seedmask_run(Module*, const char*, void* const*, const size_t*, size_t, void* const*, const size_t*, size_t, char*, size_t);
int seedmask_threads(uint32_t);
}

static std::vector<char> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

int main(int count, char** words) {
  char why[512] = "";
  const std::string method = words[2];
  const auto program = read(words[1]);
  void* aligned = nullptr;
  if (posix_memalign(&aligned, 128, program.size()) != 0) return 1;
  std::memcpy(aligned, program.data(), program.size());
  seedmask_threads(1);
  Module* module = seedmask_open(aligned, program.size(), why, sizeof why);
  std::vector<std::vector<char>> in, out;
  for (int i = 0; i < std::atoi(words[3]); ++i) in.push_back(read(method + ".in" + std::to_string(i)));
  for (int i = 4; i < count; ++i) out.emplace_back(std::atol(words[i]));
  std::vector<void*> from, to;
  std::vector<size_t> from_bytes, to_bytes;
  for (auto& bytes : in) from.push_back(bytes.data()), from_bytes.push_back(bytes.size());
  for (auto& bytes : out) to.push_back(bytes.data()), to_bytes.push_back(bytes.size());
  if (module == nullptr || seedmask_run(module, method.c_str(), from.data(), from_bytes.data(), from.size(), to.data(),
                                        to_bytes.data(), to.size(), why, sizeof why) != 0) {
    std::fprintf(stderr, "%s\n", why);
    return 1;
  }
  for (size_t i = 0; i < out.size(); ++i)
    std::ofstream(method + ".out" + std::to_string(i), std::ios::binary).write(out[i].data(), out[i].size());
  return 0;
}
