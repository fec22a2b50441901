/* SPDX-License-Identifier: MIT */
/*
 * What is read from elsewhere, with anything in it: sizes and chains of a command
 * line, the text of maps and smaps, and a control block into which the program
 * has written.  One byte says which; the rest is the input.
 *
 * By itself it runs seeded mutations of samples, the same each time; built with
 * -DHMM_LIBFUZZER and clang's -fsanitize=fuzzer it is libFuzzer's ("make fuzz").
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hmm/internal.h"
#include "hmm/size.h"

#define INPUT_MAX 4096u

static void must(bool good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "not so: %s\n", what);
	abort();
}

static int file_of(const void *data, size_t len)
{
	int fd = memfd_create("text", MFD_CLOEXEC);

	must(fd >= 0 && write(fd, data, len) == (ssize_t)len, "a file in memory");
	return fd;
}

static void size_of(const char *text)
{
	uint64_t bytes = 7, again;
	char back[32];

	if (hmm_size_parse(text, &bytes)) {
		must(bytes == 7, "an error leaves the result alone");
		return;
	}
	must(*text >= '0' && *text <= '9', "a size begins with a digit");
	snprintf(back, sizeof(back), "%llu", (unsigned long long)bytes);
	must(!hmm_size_parse(back, &again) && again == bytes, "bytes read as themselves");
}

/* No device is opened that would write somewhere. */
static void chain_of(const char *text)
{
	char spec[160], err[160] = "";
	struct hmm_device *dev;

	for (unsigned n = 0; hmm_chain_next(&text, spec, sizeof(spec)) == 1; n++) {
		must(*spec && strlen(spec) < sizeof(spec) && n < INPUT_MAX,
		     "a specification is not empty, nor too long");
		if (strstr(spec, "file") || !(strncmp(spec, "lz4", 3) == 0 || strncmp(spec, "faulty", 6) == 0))
			continue;
		if (hmm_device_open(spec, &dev, err, sizeof(err)))
			must(*err && !dev, "why a device cannot be opened is said");
		else
			hmm_device_close(dev);
	}
}

static void maps_of(const uint8_t *data, size_t len)
{
	struct umm_space *space;
	struct umm_vma v;
	uint64_t at = 0;

	must(!umm_space_open_self(&space), "a space");
	close(space->maps_fd);
	space->maps_fd = file_of(data, len);
	space->maps_text = true;
	for (unsigned n = 0; n < 64 && !umm_vma_next(space, at, &v); n++) {
		must(v.end > at, "a mapping ends behind what was asked for");
		at = v.end;
	}
	umm_space_close(space);
}

static void smaps_of(const uint8_t *data, size_t len)
{
	struct hmm_iset absent = {0}, empty = {0};
	static struct hmm_mm mm;

	mm.smaps_fd = file_of(data, len);
	if (!hmm_find_unforked(&mm, &absent, &empty))
		for (unsigned i = 0; i < absent.n; i++)
			must(absent.v[i].start < absent.v[i].end, "an interval is not empty");
	hmm_iset_clear(&absent);
	hmm_iset_clear(&empty);
	close(mm.smaps_fd);
}

/* The inside must stay in its staging, and come to an end, whatever stands in the block.  No page moves: no descriptor.
 */
static void block_of(const uint8_t *data, size_t len)
{
	static struct umm_ctl ctl;
	static char staging[UMM_BATCHES * UMM_BATCH_PAGES * UMM_PAGE] __attribute__((aligned(4096)));
	static char window[sizeof(staging)] __attribute__((aligned(4096)));
	struct umm_inside in = {.uffd = -1, .ctl = &ctl, .staging = staging, .window = window};
	size_t room = sizeof(ctl.batch[0]);

	memset(&ctl.batch[0], 0, room);
	memcpy(&ctl.batch[0], data, len < room ? len : room);
	umm_inside_move(&in, len ? data[0] % 2 * UMM_BATCHES : 0);
	for (unsigned i = 0; i < UMM_BATCH_RUNS; i++)
		must(!ctl.batch[0].run[i].mask || i >= ctl.batch[0].nr ||
			     atomic_load(&ctl.batch[0].run[i].state) == UMM_RUN_FILLED,
		     "nothing moves without a descriptor");
}

static void one(const uint8_t *data, size_t len)
{
	char text[INPUT_MAX + 1];

	if (!len || len > INPUT_MAX)
		return;
	memcpy(text, data + 1, len - 1);
	text[len - 1] = 0;
	switch (data[0] % 5) {
	case 0:
		size_of(text);
		break;
	case 1:
		chain_of(text);
		break;
	case 2:
		maps_of(data + 1, len - 1);
		break;
	case 3:
		smaps_of(data + 1, len - 1);
		break;
	case 4:
		block_of(data + 1, len - 1);
		break;
	}
}

#ifdef HMM_LIBFUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	one(data, len);
	return 0;
}
#else

#include "../unit/hmm/rng.h"

static const char *const samples[] = {
	"\0"
	"18446744073709551615",
	"\0"
	"16383PiB",
	"\0"
	"64KiB",
	"\1"
	"lz4:1G,raw,file:/var/tmp,4G",
	"\1"
	"faulty:in=3,out=18446744073709551615:lz4:256K,raw,lz4",
	"\2"
	"7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \n7f0000001000-7f0000003000 r-xp 00001000 fe:01 77  "
	"/usr/lib/a b.so"
	" (deleted)\n7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0 [stack]\n",
	"\3"
	"7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \nSize: 4 kB\nVmFlags: rd wr mr mw me ac wf \n7f0000001000-"
	"7f0000002000 rw-p 00000000 00:00 0 \nVmFlags: rd wr dc \n",
	"\4"
	"\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0aaaaaaaaaaaaaaaa\3\0\0\0",
};

int main(int argc, char **argv)
{
	unsigned runs = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 0) : 20000;
	struct rng rng = {argc > 2 ? strtoull(argv[2], NULL, 0) : 1};
	const unsigned nsamples = sizeof(samples) / sizeof(samples[0]);

	for (unsigned n = 0; n < runs; n++) {
		static const char bytes[] = "0-9:,\n \tkKmMgGtTiBb[]/anon=.x";
		uint8_t in[INPUT_MAX];
		unsigned s = n % nsamples;
		size_t len = 1 + strlen(samples[s] + 1);

		if (samples[s][0] == 4)
			len = 64;
		memset(in, 0, sizeof(in));
		memcpy(in, samples[s], samples[s][0] == 4 ? 34 : len);
		for (unsigned k = n < nsamples ? 0 : 1 + rng_below(&rng, 8); k; k--) {
			size_t at = 1 + rng_below(&rng, (unsigned)len), more = rng_below(&rng, 24);

			switch (rng_below(&rng, 5)) {
			case 0:
				in[at] = (uint8_t)rng_next(&rng);
				break;
			case 1:
				in[at] = (uint8_t)bytes[rng_below(&rng, sizeof(bytes))];
				break;
			case 2: /* some of it twice */
				if (len + more < 2048 && at + more <= len) {
					memmove(in + at + more, in + at, len - at);
					len += more;
				}
				break;
			case 3: /* some of it not */
				if (at + more < len) {
					memmove(in + at, in + at + more, len - at - more);
					len -= more;
				}
				break;
			case 4:
				len = at;
				break;
			}
			if (len < 2)
				len = 2;
		}
		one(in, len);
	}
	printf("%u inputs\n", runs);
	return 0;
}
#endif
