/* SPDX-License-Identifier: MIT */
/* hmm bench: what its files share. */
#ifndef CLI_BENCH_BENCH_H
#define CLI_BENCH_BENCH_H

#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What one round gave, in ns; mean and p99 where each of many was timed, else 0. */
struct bench_sample {
	double value, mean, p99;
};

/* Who runs the workloads. */
enum { RUN_RAM, RUN_HMM, RUN_ZRAM, RUNS };
/* What a run of them gives. */
enum { RUN_FILL, RUN_READ, RUN_WRITE, RUN_UNIFORM, RUN_CPU, RUN_FIGURES };

struct bench_run {
	unsigned round; /* of which this is, from 1 on */
	int rc;
	double ns[RUN_FIGURES];
	char why[256];
};

struct bench {
	size_t npages; /* that memory figures and workloads have */
	unsigned ratio, round, rounds;
	cpu_set_t cpus;      /* that we may run on */
	int cpu, other;      /* two of them; @other is -1 where there is one only */
	char *data;          /* npages pages, made by data_fill() */
	bool work[RUN_CPU];  /* workloads to run */
	uint64_t budget;     /* bytes that hmm run may have; 0: not known yet */
	uint64_t peak[RUNS]; /* bytes of RAM at most, by its own account or the cgroup's; 0: not known */
	struct bench_run run[RUNS];
	char why[256]; /* a figure cannot be had */
};

#define BENCH_SKIP 1

/* Says why in @b->why.  Returns BENCH_SKIP. */
int bench_skip(struct bench *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/*
 * Measure once.  @arg: which, of what the function measures.  Returns 0; BENCH_SKIP
 * with the reason in @b->why; or -EIO: memory is not what it must be, or who serves it failed.
 */
int bench_memory(struct bench *b, int arg, struct bench_sample *s);
int bench_fault(struct bench *b, int arg, struct bench_sample *s);
int bench_run(struct bench *b, int arg, struct bench_sample *s);
int bench_run_back(struct bench *b, int arg, struct bench_sample *s);

enum {
	MEM_SYSCALL,
	MEM_MEMCPY,
	MEM_TOUCH,
	MEM_LZ4_IN,
	MEM_LZ4_OUT,
	MEM_COPY_4K,
	MEM_COPY_64K,
	MEM_MOVE_4K,
	MEM_MOVE_64K,
	MEM_MOVE_2M,
	MEM_PROTECT,
	MEM_SCAN,
	MEM_DONTNEED
};
enum {
	FAULT_KERNEL,
	FAULT_SIGBUS,
	FAULT_SAME_CPU,
	FAULT_SPINNING,
	FAULT_ASLEEP,
	FAULT_PROCESS,
	FAULT_PROCESS_LZ4,
	FAULT_BESIDE,
	FAULT_BESIDE_LZ4
};

#define RUN_ARG(who, figure) ((who)*RUN_FIGURES + (figure))

/* A userfaultfd that agrees on @features.  Returns 0, or BENCH_SKIP. */
int bench_uffd(struct bench *b, uint64_t features, int *fd);

/* Median, mean and 99th percentile of @n times.  Sorts them. */
void bench_times(uint64_t *ns, size_t n, struct bench_sample *s);

/* Is page @p what data_fill() made of @index? */
bool bench_right(const char *p, uint64_t index, unsigned ratio);

/*
 * A zram swap and a memory cgroup for one run.  All that is changed for it is taken
 * back by swap_end(), and by a process of its own should we end before.
 */
struct swap;
/* @limit: bytes that whoever is in the cgroup may have resident.  Returns 0, or BENCH_SKIP. */
int swap_begin(struct bench *b, uint64_t limit, struct swap **sp);
/* The cgroup's list of processes. */
const char *swap_procs(const struct swap *s);
/* Bytes of RAM that it takes now, pool and all. */
uint64_t swap_usage(const struct swap *s);
void swap_end(struct swap *s);

/* Programs that hmm bench runs: itself, by these names. */
int bench_work_main(int argc, char **argv);
int bench_back_main(int argc, char **argv);

#endif
