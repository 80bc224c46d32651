// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Another file system than the one at hand, for a program that is started with this preloaded:
//
//   FAKE_VERITY=1     has fs-verity for SHA-256. The descriptor that a real one would make is kept in
//                     the attribute user.fake-verity, so it stays what it was when it was enabled.
//   FAKE_BUSY=N       the first N times verity is enabled there is a writer left (ETXTBSY)
//   FAKE_NO_TMPFILE=1 knows no O_TMPFILE
//   FAKE_NO_FLAGS=1   knows no flags of renameat2
//
// Source of the digest: Documentation/filesystems/fsverity.rst. Of SHA-256: FIPS 180-4.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#define ENABLE_VERITY 0x40806685UL
#define MEASURE_VERITY 0xc0046686UL
#define READ_METADATA 0xc0286687UL
#define ATTRIBUTE "user.fake-verity"
#define BLOCK 4096
#define DIGEST 32
#define DESCRIPTOR 256

static uint32_t rotate(uint32_t word, int count)
{
	return word >> count | word << (32 - count);
}

static uint32_t fraction(double root)
{
	return (uint32_t)((root - (uint64_t)root) * 4294967296.0);
}

static double root_of(double number, int degree)
{
	double guess = number > 1 ? number / degree : 1;
	for (int turn = 0; turn < 200; turn++) {
		double power = 1;
		for (int i = 1; i < degree; i++)
			power *= guess;
		guess -= (guess * power - number) / (degree * power);
	}
	return guess;
}

// The constants are the first bits of the roots of the first primes.
static void make_constants(uint32_t start[8], uint32_t steps[64])
{
	int found = 0;
	for (int number = 2; found < 64; number++) {
		int prime = 1;
		for (int divisor = 2; divisor * divisor <= number; divisor++)
			prime &= number % divisor != 0;
		if (!prime)
			continue;
		if (found < 8)
			start[found] = fraction(root_of(number, 2));
		steps[found++] = fraction(root_of(number, 3));
	}
}

static void hash_block(uint32_t state[8], const uint32_t steps[64], const uint8_t *data)
{
	uint32_t words[64], now[8];
	for (int i = 0; i < 16; i++)
		words[i] = (uint32_t)data[4 * i] << 24 | data[4 * i + 1] << 16 |
			   data[4 * i + 2] << 8 | data[4 * i + 3];
	for (int i = 16; i < 64; i++) {
		uint32_t a = words[i - 15], b = words[i - 2];
		words[i] = words[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) +
			   words[i - 7] + (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
	}
	memcpy(now, state, sizeof(now));
	for (int i = 0; i < 64; i++) {
		uint32_t a = now[0], e = now[4];
		uint32_t first = now[7] + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) +
				 ((e & now[5]) ^ (~e & now[6])) + steps[i] + words[i];
		uint32_t second = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) +
				  ((a & now[1]) ^ (a & now[2]) ^ (now[1] & now[2]));
		memmove(now + 1, now, 7 * sizeof(*now));
		now[4] += first;
		now[0] = first + second;
	}
	for (int i = 0; i < 8; i++)
		state[i] += now[i];
}

// `size` is a multiple of 64.
static void sha256(const uint8_t *data, size_t size, uint8_t out[DIGEST])
{
	static uint32_t start[8], steps[64];
	uint32_t state[8];
	uint8_t last[64] = { 0x80 };
	if (!steps[0])
		make_constants(start, steps);
	memcpy(state, start, sizeof(state));
	for (size_t at = 0; at < size; at += 64)
		hash_block(state, steps, data + at);
	for (int i = 0; i < 8; i++)
		last[63 - i] = (uint8_t)((uint64_t)size * 8 >> 8 * i);
	hash_block(state, steps, last);
	for (int i = 0; i < DIGEST; i++)
		out[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
}

static int describe(int fd, uint8_t descriptor[DESCRIPTOR])
{
	struct stat found;
	if (fstat(fd, &found) < 0)
		return -1;
	size_t blocks = ((size_t)found.st_size + BLOCK - 1) / BLOCK;
	uint8_t *level = calloc(blocks + 1, BLOCK);
	if (level == NULL)
		return -1;
	for (off_t at = 0; at < found.st_size;) {
		ssize_t got = pread(fd, level + at, (size_t)(found.st_size - at), at);
		if (got <= 0) {
			free(level);
			return -1;
		}
		at += got;
	}
	uint64_t size = (uint64_t)found.st_size;
	memset(descriptor, 0, DESCRIPTOR);
	memcpy(descriptor, (uint8_t[]){ 1, 1, 12 }, 3);
	memcpy(descriptor + 8, &size, sizeof(size));
	while (blocks > 0) {
		for (size_t i = 0; i < blocks; i++) {
			uint8_t digest[DIGEST];
			sha256(level + i * BLOCK, BLOCK, digest);
			memcpy(level + i * DIGEST, digest, DIGEST);
		}
		if (blocks == 1) {
			memcpy(descriptor + 16, level, DIGEST);
			break;
		}
		size_t bytes = blocks * DIGEST;
		blocks = (bytes + BLOCK - 1) / BLOCK;
		memset(level + bytes, 0, blocks * BLOCK - bytes);
	}
	free(level);
	return 0;
}

static int fail(int number)
{
	errno = number;
	return -1;
}

static int enable(int fd, const uint32_t *argument)
{
	static int busy = -1;
	uint8_t descriptor[DESCRIPTOR];
	if (busy < 0)
		busy = getenv("FAKE_BUSY") ? atoi(getenv("FAKE_BUSY")) : 0;
	if (argument[0] != 1 || argument[1] != 1 || argument[2] != BLOCK)
		return fail(EINVAL);
	if ((fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY)
		return fail(ETXTBSY);
	if (busy > 0) {
		busy--;
		return fail(ETXTBSY);
	}
	if (fgetxattr(fd, ATTRIBUTE, descriptor, DESCRIPTOR) == DESCRIPTOR)
		return fail(EEXIST);
	if (describe(fd, descriptor) < 0)
		return -1;
	return fsetxattr(fd, ATTRIBUTE, descriptor, DESCRIPTOR, 0);
}

static int measure(int fd, uint8_t *argument)
{
	uint16_t head[2] = { 1, DIGEST };
	uint8_t descriptor[DESCRIPTOR];
	if (fgetxattr(fd, ATTRIBUTE, descriptor, DESCRIPTOR) != DESCRIPTOR)
		return fail(ENODATA);
	sha256(descriptor, DESCRIPTOR, argument + 4);
	memcpy(argument, head, sizeof(head));
	return 0;
}

// u64 what (2: the descriptor), offset, length, address, 0.
static int read_metadata(int fd, const uint64_t *argument)
{
	if (argument[0] != 2 || argument[1] != 0 || argument[2] < DESCRIPTOR || argument[4] != 0)
		return fail(EINVAL);
	if (fgetxattr(fd, ATTRIBUTE, (void *)argument[3], DESCRIPTOR) != DESCRIPTOR)
		return fail(ENODATA);
	return DESCRIPTOR;
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list list;
	va_start(list, request);
	void *argument = va_arg(list, void *);
	va_end(list);
	if (getenv("FAKE_VERITY") != NULL) {
		if ((uint32_t)request == ENABLE_VERITY)
			return enable(fd, argument);
		if ((uint32_t)request == MEASURE_VERITY)
			return measure(fd, argument);
		if ((uint32_t)request == READ_METADATA)
			return read_metadata(fd, argument);
	}
	return (int)syscall(SYS_ioctl, fd, request, argument);
}

static int open_it(int at, const char *path, int flags, mode_t mode)
{
	if ((flags & O_TMPFILE) == O_TMPFILE && getenv("FAKE_NO_TMPFILE") != NULL)
		return fail(EOPNOTSUPP);
	return (int)syscall(SYS_openat, at, path, flags, mode);
}

#define OPEN(name, flag)                                              \
	int name(const char *path, int flags, ...)                    \
	{                                                             \
		va_list list;                                         \
		va_start(list, flags);                                \
		mode_t mode = va_arg(list, mode_t);                   \
		va_end(list);                                         \
		return open_it(AT_FDCWD, path, flags | (flag), mode); \
	}
#define OPENAT(name)                                               \
	int name(int at, const char *path, int flags, ...)         \
	{                                                          \
		va_list list;                                      \
		va_start(list, flags);                             \
		mode_t mode = va_arg(list, mode_t);                \
		va_end(list);                                      \
		return open_it(at, path, flags | O_LARGEFILE, mode); \
	}
OPEN(open, O_LARGEFILE)
OPEN(open64, O_LARGEFILE)
OPENAT(openat)
OPENAT(openat64)

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned int flags)
{
	if (flags != 0 && getenv("FAKE_NO_FLAGS") != NULL)
		return fail(EINVAL);
	return (int)syscall(SYS_renameat2, from_at, from, to_at, to, flags);
}
