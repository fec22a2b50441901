/* SPDX-License-Identifier: MIT */
/*
 * An image pipeline on a device that has less memory than the image, through
 * hmm_cl; and the same with hand-written buffers.
 *
 *	pipeline [-r ROWS] [-m MIB] [-b ROWS] [-c]
 *
 *	CPU	draws the image
 *	device	blur, edges: band after band
 *	CPU	follows the strongest edge from left to right: which rows it
 *		needs is known when it has read those before
 *	device	tone: the edges in place, scaled by what the CPU has found
 *	CPU	marks the way that it has taken, and adds all up
 *
 * Image and result are malloc's.  The three kernels and the three steps of the
 * CPU are the same for both; what differs is struct way: how a band gets to the
 * device and back.  By hand there are buffers of one band, filled before and read
 * after; ours leaves to the driver what is where.  The results must be the same,
 * byte for byte, else the exit status is 1.
 *
 * -r rows of 4 KiB, -m the device's memory that may be used, -b rows of a band;
 * -c copies through the runtime, also where the CPU reaches the device's memory.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hmm_cl.h"

#define WIDTH 1024u
#define ROW (WIDTH * sizeof(float))
#define MIB ((size_t)1 << 20)

static struct {
	size_t rows, memory, band;
	unsigned flags;
} opt = {.rows = 8192, .memory = 16, .band = 512};

static const char source[] =
	"#define W 1024\n"
	"int near(int i, int n) { return i < 0 ? 0 : i >= n ? n - 1 : i; }\n"
	/* Rows first to first + n of an image of which src has rows from `have` on. */
	"kernel void blur(global const float *src, global float *dst, int first, int have, int rows)\n"
	"{ int x = get_global_id(0), y = get_global_id(1); float s = 0;\n"
	"  for (int j = -1; j < 2; j++)\n"
	"    for (int i = -1; i < 2; i++)\n"
	"      s += src[(near(first + y + j, rows) - have) * W + near(x + i, W)];\n"
	"  dst[y * W + x] = s / 9; }\n"
	/* src: blurred rows from `have` on. */
	"kernel void edges(global const float *src, global float *dst, int first, int have, int rows)\n"
	"{ int x = get_global_id(0), y = get_global_id(1), c = first + y - have;\n"
	"  int up = near(first + y - 1, rows) - have, down = near(first + y + 1, rows) - have;\n"
	"  float h = src[c * W + near(x + 1, W)] - src[c * W + near(x - 1, W)];\n"
	"  float v = src[down * W + x] - src[up * W + x];\n"
	"  dst[y * W + x] = h * h + v * v; }\n"
	"kernel void tone(global float *a, float scale)\n"
	"{ size_t i = get_global_id(0) + get_global_id(1) * W; a[i] = a[i] * scale / (1 + a[i] * scale); }\n";

static void check(int rc, const char *what)
{
	if (!rc)
		return;
	if (rc == -ENODEV || rc == -EPERM || rc == -EOPNOTSUPP || rc == -ENOSYS) {
		printf("SKIP: %s: error %d\n", what, -rc);
		exit(77);
	}
	fprintf(stderr, "pipeline: %s: error %d\n", what, rc);
	exit(1);
}

static void *memory(size_t bytes)
{
	void *p = malloc(bytes);

	check(p ? 0 : -ENOMEM, "memory");
	return p;
}

/* A band: rows [first, end), and what of the image and of the blurred rows is needed for it. */
struct band {
	size_t first, end, blur_first, blur_end, image_first, image_end;
};

static struct band band_of(size_t first)
{
	struct band b = {.first = first, .end = first + opt.band < opt.rows ? first + opt.band : opt.rows};

	b.blur_first = b.first ? b.first - 1 : 0;
	b.blur_end = b.end < opt.rows ? b.end + 1 : opt.rows;
	b.image_first = b.blur_first ? b.blur_first - 1 : 0;
	b.image_end = b.blur_end < opt.rows ? b.blur_end + 1 : opt.rows;
	return b;
}

/* How the device gets at the memory of the program. */
struct way {
	const char *name;
	void (*blur_and_edges)(const float *image, float *result, const struct band *b);
	void (*tone)(float *result, const struct band *b, float scale);
	uint64_t in, out; /* bytes moved to the device, and from there */
};

/* ---------------------------------------------------------------------- ours */

static struct {
	struct hmm_cl *cl;
	struct hmm_cl_kernel *blur, *edges, *tone;
	float *blurred; /* a band */
} ours;

static void launch(struct hmm_cl_kernel *k, size_t rows)
{
	const size_t global[2] = {WIDTH, rows}, local[2] = {WIDTH, 1};
	char line[200];
	int rc = hmm_cl_launch(k, 2, NULL, global, local, 0, NULL, NULL);

	if (rc) {
		hmm_cl_message(ours.cl, line, sizeof(line));
		fprintf(stderr, "pipeline: %s\n", line);
	}
	check(rc, "launch");
}

static void number(struct hmm_cl_kernel *k, unsigned index, size_t value)
{
	cl_int n = (cl_int)value;

	check(hmm_cl_value(k, index, &n, sizeof(n)), "value");
}

static void our_blur_and_edges(const float *image, float *result, const struct band *b)
{
	size_t blurred =
		(opt.band + 2) * ROW; /* all of it, as the buffer by hand: one piece, whatever the band needs */

	check(hmm_cl_arg(ours.blur, 0, image + b->image_first * WIDTH, (b->image_end - b->image_first) * ROW,
			 HMM_CL_READ),
	      "argument");
	check(hmm_cl_arg(ours.blur, 1, ours.blurred, blurred, HMM_CL_WRITE_ALL), "argument");
	number(ours.blur, 2, b->blur_first);
	number(ours.blur, 3, b->image_first);
	number(ours.blur, 4, opt.rows);
	launch(ours.blur, b->blur_end - b->blur_first);

	check(hmm_cl_arg(ours.edges, 0, ours.blurred, blurred, HMM_CL_READ), "argument");
	check(hmm_cl_arg(ours.edges, 1, result + b->first * WIDTH, (b->end - b->first) * ROW, HMM_CL_WRITE_ALL),
	      "argument");
	number(ours.edges, 2, b->first);
	number(ours.edges, 3, b->blur_first);
	number(ours.edges, 4, opt.rows);
	launch(ours.edges, b->end - b->first);
}

static void our_tone(float *result, const struct band *b, float scale)
{
	check(hmm_cl_arg(ours.tone, 0, result + b->first * WIDTH, (b->end - b->first) * ROW, HMM_CL_READ_WRITE),
	      "argument");
	check(hmm_cl_value(ours.tone, 1, &scale, sizeof(scale)), "value");
	launch(ours.tone, b->end - b->first);
}

static struct way our_way = {.name = "hmm", .blur_and_edges = our_blur_and_edges, .tone = our_tone};

/* ------------------------------------------------------------------- by hand */

static struct {
	cl_command_queue queue;
	cl_kernel blur, edges, tone;
	cl_mem image, blurred, result; /* of one band */
} hand;

static struct way hand_way;

static void write_buffer(cl_mem mem, const void *from, size_t bytes)
{
	check(clEnqueueWriteBuffer(hand.queue, mem, CL_FALSE, 0, bytes, from, 0, NULL, NULL), "write");
	hand_way.in += bytes;
}

static void read_buffer(cl_mem mem, void *to, size_t bytes)
{
	check(clEnqueueReadBuffer(hand.queue, mem, CL_TRUE, 0, bytes, to, 0, NULL, NULL), "read");
	hand_way.out += bytes;
}

static void set_mem(cl_kernel k, cl_uint index, cl_mem mem)
{
	check(clSetKernelArg(k, index, sizeof(mem), &mem), "argument");
}

static void set_number(cl_kernel k, cl_uint index, size_t value)
{
	cl_int n = (cl_int)value;

	check(clSetKernelArg(k, index, sizeof(n), &n), "argument");
}

static void enqueue(cl_kernel k, size_t rows)
{
	const size_t global[2] = {WIDTH, rows}, local[2] = {WIDTH, 1};

	check(clEnqueueNDRangeKernel(hand.queue, k, 2, NULL, global, local, 0, NULL, NULL), "kernel");
}

static void hand_blur_and_edges(const float *image, float *result, const struct band *b)
{
	write_buffer(hand.image, image + b->image_first * WIDTH, (b->image_end - b->image_first) * ROW);
	set_mem(hand.blur, 0, hand.image);
	set_mem(hand.blur, 1, hand.blurred);
	set_number(hand.blur, 2, b->blur_first);
	set_number(hand.blur, 3, b->image_first);
	set_number(hand.blur, 4, opt.rows);
	enqueue(hand.blur, b->blur_end - b->blur_first);

	set_mem(hand.edges, 0, hand.blurred);
	set_mem(hand.edges, 1, hand.result);
	set_number(hand.edges, 2, b->first);
	set_number(hand.edges, 3, b->blur_first);
	set_number(hand.edges, 4, opt.rows);
	enqueue(hand.edges, b->end - b->first);
	read_buffer(hand.result, result + b->first * WIDTH, (b->end - b->first) * ROW);
}

static void hand_tone(float *result, const struct band *b, float scale)
{
	write_buffer(hand.result, result + b->first * WIDTH, (b->end - b->first) * ROW);
	set_mem(hand.tone, 0, hand.result);
	check(clSetKernelArg(hand.tone, 1, sizeof(scale), &scale), "argument");
	enqueue(hand.tone, b->end - b->first);
	read_buffer(hand.result, result + b->first * WIDTH, (b->end - b->first) * ROW);
}

static struct way hand_way = {.name = "by hand", .blur_and_edges = hand_blur_and_edges, .tone = hand_tone};

/* -------------------------------------------------------------- the pipeline */

static void draw(float *image)
{
	uint32_t noise = 1;

	for (size_t y = 0; y < opt.rows; y++)
		for (size_t x = 0; x < WIDTH; x++) {
			size_t hill = opt.rows / 2 + x * (x % 97) / 64 % (opt.rows / 4 + 1);

			noise = noise * 1664525u + 1013904223u;
			image[y * WIDTH + x] = (y > hill ? 40.0f : 8.0f) + (float)(noise >> 24) / 64;
		}
}

/* From the middle of the left side on, always to the strongest of the three that are next; its mean. */
static float follow(const float *result, size_t way[WIDTH])
{
	size_t y = opt.rows / 2;
	double sum = 0;

	for (size_t x = 0; x < WIDTH; x++) {
		size_t best = y;

		for (size_t at = y ? y - 1 : 0; at <= y + 1 && at < opt.rows; at++)
			if (result[at * WIDTH + x] > result[best * WIDTH + x])
				best = at;
		y = way[x] = best;
		sum += result[y * WIDTH + x];
	}
	return (float)(sum / WIDTH);
}

static double add_up(const float *result)
{
	double sum = 0;

	for (size_t i = 0; i < opt.rows * WIDTH; i++)
		sum += result[i];
	return sum;
}

static double run(const struct way *w, const float *image, float *result)
{
	size_t way[WIDTH], nbands = (opt.rows + opt.band - 1) / opt.band;
	float mean;

	for (size_t i = 0; i < nbands; i++) {
		struct band b = band_of(i * opt.band);

		w->blur_and_edges(image, result, &b);
	}
	mean = follow(result, way);
	/* From the end: what was there last may be there still, for who knows it. */
	for (size_t i = nbands; i--;) {
		struct band b = band_of(i * opt.band);

		w->tone(result, &b, mean > 0 ? 1 / mean : 1);
	}
	/* The result of the last of them that is not whole pages is here when it has ended. */
	if (w == &our_way)
		check(hmm_cl_wait(ours.cl), "kernels");
	for (size_t x = 0; x < WIDTH; x++)
		result[way[x] * WIDTH + x] = 1;
	return add_up(result);
}

static cl_kernel plain(cl_program program, const char *name)
{
	cl_int err;
	cl_kernel k = clCreateKernel(program, name, &err);

	check(err, name);
	return k;
}

static cl_mem buffer(cl_context context, size_t rows)
{
	cl_int err;
	cl_mem mem = clCreateBuffer(context, CL_MEM_READ_WRITE, rows * ROW, NULL, &err);

	check(err, "buffer");
	return mem;
}

static void run_by_hand(cl_context context, cl_command_queue queue, cl_program program, const float *image,
			float *result, double *sum)
{
	hand.queue = queue;
	hand.blur = plain(program, "blur");
	hand.edges = plain(program, "edges");
	hand.tone = plain(program, "tone");
	hand.image = buffer(context, opt.band + 4);
	hand.blurred = buffer(context, opt.band + 2);
	hand.result = buffer(context, opt.band);
	*sum = run(&hand_way, image, result);
	clReleaseMemObject(hand.image);
	clReleaseMemObject(hand.blurred);
	clReleaseMemObject(hand.result);
	clReleaseKernel(hand.blur);
	clReleaseKernel(hand.edges);
	clReleaseKernel(hand.tone);
}

static void run_ours(cl_program program, const float *image, float *result, double *sum)
{
	size_t bytes = opt.rows * ROW;
	struct hmm_cl_stats st;
	void *p;

	check(hmm_cl_kernel_open(ours.cl, program, "blur", &ours.blur), "blur");
	check(hmm_cl_kernel_open(ours.cl, program, "edges", &ours.edges), "edges");
	check(hmm_cl_kernel_open(ours.cl, program, "tone", &ours.tone), "tone");
	check(hmm_cl_alloc(ours.cl, (opt.band + 2) * ROW, &p), "memory");
	ours.blurred = p;
	*sum = run(&our_way, image, result);
	/* What is malloc's is brought back before it is malloc's again. */
	check(hmm_cl_release(ours.cl, image, bytes), "release");
	check(hmm_cl_release(ours.cl, result, bytes), "release");
	hmm_cl_free(ours.cl, ours.blurred, (opt.band + 2) * ROW);
	hmm_cl_stats(ours.cl, &st);
	our_way.in = st.bytes_in;
	our_way.out = st.bytes_out;
	hmm_cl_kernel_close(ours.blur);
	hmm_cl_kernel_close(ours.edges);
	hmm_cl_kernel_close(ours.tone);
}

static void say(const struct way *w)
{
	printf("%-8s %12llu bytes to the device, %12llu back\n", w->name, (unsigned long long)w->in,
	       (unsigned long long)w->out);
}

static size_t argument(const char *s)
{
	char *end;
	unsigned long n = strtoul(s, &end, 10);

	if (*end || !n || n > 1 << 20) {
		fprintf(stderr, "pipeline: %s: a number from 1 to %d is wanted\n", s, 1 << 20);
		exit(2);
	}
	return n;
}

static void options(int argc, char **argv)
{
	int c;

	while ((c = getopt(argc, argv, "r:m:b:c")) != -1) {
		if (c == 'r')
			opt.rows = argument(optarg);
		else if (c == 'm')
			opt.memory = argument(optarg);
		else if (c == 'b')
			opt.band = argument(optarg);
		else if (c == 'c')
			opt.flags = HMM_CL_COPIES;
		else
			exit(2);
	}
	if (optind != argc) {
		fprintf(stderr, "usage: pipeline [-r ROWS] [-m MIB] [-b ROWS] [-c]\n");
		exit(2);
	}
}

int main(int argc, char **argv)
{
	double sum_hand, sum_ours;
	struct umm_space *space;
	struct hmm_mm *mm;
	cl_program program;
	char log[4000];
	float *image, *by_hand, *result;
	size_t bytes;
	int rc;

	options(argc, argv);
	bytes = opt.rows * ROW;
	check(umm_space_open_self(&space), "address space");
	check(hmm_mm_open(space, &mm), "engine");
	rc = hmm_cl_open(space, mm, &(struct hmm_cl_params){.memory = opt.memory * MIB, .flags = opt.flags}, &ours.cl);
	check(rc, "no OpenCL device");
	rc = hmm_cl_build(ours.cl, source, NULL, log, sizeof(log), &program);
	if (rc)
		fprintf(stderr, "%s\n", log);
	check(rc, "build");

	image = memory(bytes);
	by_hand = memory(bytes);
	result = memory(bytes);
	draw(image);
	run_by_hand(hmm_cl_context(ours.cl), hmm_cl_queue(ours.cl), program, image, by_hand, &sum_hand);
	run_ours(program, image, result, &sum_ours);

	printf("%.1f MiB of image and result, on a device that may use %zu MiB\n", (double)bytes * 2 / MIB, opt.memory);
	say(&hand_way);
	say(&our_way);
	rc = memcmp(by_hand, result, bytes) || sum_hand != sum_ours;
	printf("sum %.3f: the results are %s\n", sum_ours, rc ? "NOT the same" : "the same");

	clReleaseProgram(program);
	check(hmm_cl_close(ours.cl), "close");
	check(hmm_mm_close(mm), "close");
	umm_space_close(space);
	free(image);
	free(by_hand);
	free(result);
	return rc;
}
