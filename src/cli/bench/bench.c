/* SPDX-License-Identifier: MIT */
/*
 * hmm bench: what hmm costs and gains on this machine.
 *
 * DOC: rounds
 *
 * Each round measures every figure once, one after the other, and every second round
 * in the opposite order: what the machine does beside it, and how warm it is, meets all
 * alike.  Told are the median of the rounds, the least and the most; and, of a figure
 * that has another one as its floor, how many times that one it is, each round by itself.
 * The ratios say something; the figures are those of a moment.
 *
 * A figure that cannot be had in one round is skipped as a whole, and the reason is told.
 *
 * "hmm bench work" (work.c) and "hmm bench back" (back.c) are the programs that it runs: itself, so that
 * nothing else need be installed, and bench/ has the same.
 *
 * How each is measured stands at the head of memory.c, fault.c, run.c and back.c; what
 * --zram changes, and how it is taken back, at that of swap.c.
 */
#include <errno.h>
#include <fnmatch.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "cli/bench/bench.h"
#include "cli/bench/data.h"
#include "cli/bench/measure.h"
#include "cli/cli.h"
#include "cli/options.h"
#include "cli/json.h"

#define EXIT_OURS 125 /* as hmm run */
#define MIB_LEAST 32ul
#define MIB_MOST (1ul << 16)
#define ROUNDS_MOST 1000ul
#define MORE_RAM 1.1 /* of what hmm run may have, and no ratio to zram is of equal RAM */

static const char usage[] =
	"usage: hmm bench [--mib N] [--rounds N] [--ratio 1|2|4] [--only NAME,...] [--zram] [--json FILE] [--list]\n";

static const struct figure {
	const char *name, *what;
	const char *floor; /* what it is a multiple of; NULL: nothing */
	int (*measure)(struct bench *b, int arg, struct bench_sample *s);
	int arg;
	bool page; /* of a page whose bytes are touched or placed, so that it has a speed */
} figures[] = {
	{"syscall", "a system call", NULL, bench_memory, MEM_SYSCALL, false},
	{"memcpy", "a page copied to memory that is there", NULL, bench_memory, MEM_MEMCPY, true},
	{"first-touch", "a page of memory never had, in order", "memcpy", bench_memory, MEM_TOUCH, true},
	{"lz4-in", "a page compressed", "memcpy", bench_memory, MEM_LZ4_IN, true},
	{"lz4-out", "a page decompressed", "memcpy", bench_memory, MEM_LZ4_OUT, true},
	{"fault-kernel", "a fault, served by the kernel itself", "syscall", bench_fault, FAULT_KERNEL, false},
	{"fault-sigbus", "in the thread that faults", "fault-kernel", bench_fault, FAULT_SIGBUS, false},
	{"fault-same-cpu", "by a thread on the same CPU", "fault-kernel", bench_fault, FAULT_SAME_CPU, false},
	{"fault-spinning", "by one that spins on another CPU", "fault-kernel", bench_fault, FAULT_SPINNING, false},
	{"fault-asleep", "by one asleep on another CPU", "fault-kernel", bench_fault, FAULT_ASLEEP, false},
	{"fault-process", "by another process, anywhere", "fault-kernel", bench_fault, FAULT_PROCESS, false},
	{"fault-process-lz4", "the same, and a page decompressed", "fault-kernel", bench_fault, FAULT_PROCESS_LZ4,
	 false},
	{"fault-beside", "by another process on the same CPU", "fault-kernel", bench_fault, FAULT_BESIDE, false},
	{"fault-beside-lz4", "the same, and a page decompressed", "fault-kernel", bench_fault, FAULT_BESIDE_LZ4, false},
	{"copy-4k", "UFFDIO_COPY, a page at a time", "memcpy", bench_memory, MEM_COPY_4K, true},
	{"copy-64k", "UFFDIO_COPY, 64 KiB at a time", "memcpy", bench_memory, MEM_COPY_64K, true},
	{"move-4k", "UFFDIO_MOVE, a page at a time", "memcpy", bench_memory, MEM_MOVE_4K, true},
	{"move-64k", "UFFDIO_MOVE, 64 KiB at a time", "memcpy", bench_memory, MEM_MOVE_64K, true},
	{"move-2m", "UFFDIO_MOVE, 2 MiB at a time", "memcpy", bench_memory, MEM_MOVE_2M, true},
	{"write-protect", "UFFDIO_WRITEPROTECT of a range", "memcpy", bench_memory, MEM_PROTECT, false},
	{"pagemap-scan", "PAGEMAP_SCAN of a range", "memcpy", bench_memory, MEM_SCAN, false},
	{"dontneed", "MADV_DONTNEED of a range", "memcpy", bench_memory, MEM_DONTNEED, true},
	{"ram-fill", "alone, all in RAM: first touch", NULL, bench_run, RUN_ARG(RUN_RAM, RUN_FILL), true},
	{"ram-read", "alone, all in RAM: read in order", NULL, bench_run, RUN_ARG(RUN_RAM, RUN_READ), true},
	{"ram-write", "alone, all in RAM: written in order", NULL, bench_run, RUN_ARG(RUN_RAM, RUN_WRITE), true},
	{"ram-uniform", "alone, all in RAM: any page", NULL, bench_run, RUN_ARG(RUN_RAM, RUN_UNIFORM), false},
	{"ram-cpu", "alone, all in RAM: CPU in all", NULL, bench_run, RUN_ARG(RUN_RAM, RUN_CPU), false},
	/* Before hmm run, which gets what it takes. */
	{"zram-fill", "zram swap, half local: first touch", "hmm-fill", bench_run, RUN_ARG(RUN_ZRAM, RUN_FILL), true},
	{"zram-read", "zram swap, half local: read in order", "hmm-read", bench_run, RUN_ARG(RUN_ZRAM, RUN_READ), true},
	{"zram-write", "zram swap, half local: written in order", "hmm-write", bench_run, RUN_ARG(RUN_ZRAM, RUN_WRITE),
	 true},
	{"zram-uniform", "zram swap, half local: any page", "hmm-uniform", bench_run, RUN_ARG(RUN_ZRAM, RUN_UNIFORM),
	 false},
	{"zram-cpu", "zram swap, half local: CPU in all", "hmm-cpu", bench_run, RUN_ARG(RUN_ZRAM, RUN_CPU), false},
	{"hmm-fill", "hmm run, half local: first touch", "ram-fill", bench_run, RUN_ARG(RUN_HMM, RUN_FILL), true},
	{"hmm-read", "hmm run, half local: read in order", "ram-read", bench_run, RUN_ARG(RUN_HMM, RUN_READ), true},
	{"hmm-write", "hmm run, half local: written in order", "ram-write", bench_run, RUN_ARG(RUN_HMM, RUN_WRITE),
	 true},
	{"hmm-uniform", "hmm run, half local: any page", "ram-uniform", bench_run, RUN_ARG(RUN_HMM, RUN_UNIFORM),
	 false},
	{"hmm-cpu", "hmm run, half local: CPU in all", "ram-cpu", bench_run, RUN_ARG(RUN_HMM, RUN_CPU), false},
	{"hmm-back", "hmm run, a page that is away is touched", "fault-beside-lz4", bench_run_back, 0, false},
};

#define NR_FIGURES (sizeof(figures) / sizeof(figures[0]))

/* What was measured of one. */
struct result {
	bool chosen;
	char *skipped;               /* why, or NULL */
	struct bench_sample *rounds; /* of them */
	double *value, *p99, *ratio; /* sorted */
	const struct result *floor;  /* NULL: none that was measured */
};

struct options {
	struct bench b;
	const char *json;
	bool list, zram;
	struct result result[NR_FIGURES];
};

int bench_skip(struct bench *b, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(b->why, sizeof(b->why), fmt, ap);
	va_end(ap);
	return BENCH_SKIP;
}

static int fail(const char *what, const char *why)
{
	fprintf(stderr, "hmm bench: %s%s%s\n", what, why ? ": " : "", why ? why : "");
	return EXIT_OURS;
}

/* ------------------------------------------------------------------- what is asked */

static int parse_number(const char *text, unsigned long least, unsigned long most, unsigned long *n)
{
	char *end;

	errno = 0;
	*n = strtoul(text, &end, 10);
	return errno || end == text || *end || *text == '-' || *n < least || *n > most ? -EINVAL : 0;
}

/* Names with commas between, which may hold wildcards. */
static int choose(struct options *o, char *names)
{
	for (char *name = strtok(names, ","); name; name = strtok(NULL, ",")) {
		bool any = false;

		for (unsigned i = 0; i < NR_FIGURES; i++)
			if (!fnmatch(name, figures[i].name, 0))
				o->result[i].chosen = any = true;
		if (!any)
			return fail(name, "no such figure (see hmm bench --list)");
	}
	return 0;
}

static int parse(struct options *o, int argc, char **argv)
{
	static const struct option longs[] = {
		{"mib", required_argument, NULL, 'm'},
		{"rounds", required_argument, NULL, 'r'},
		{"ratio", required_argument, NULL, 'x'},
		{"only", required_argument, NULL, 'o'},
		{"json", required_argument, NULL, 'j'},
		{"zram", no_argument, NULL, 'z'},
		{"list", no_argument, NULL, 'l'},
		{"help", no_argument, NULL, 'h'},
		{0},
	};
	unsigned long mib = 256, rounds = 5, ratio = 2;
	char *only = NULL, name[3];
	int c;

	optind = 0;
	opterr = 0;
	while ((c = getopt_long(argc, argv, "+h", longs, NULL)) != -1) {
		switch (c) {
		case 'm':
			if (parse_number(optarg, MIB_LEAST, MIB_MOST, &mib))
				return fail(optarg, "--mib takes a number from 32 to 65536");
			break;
		case 'r':
			if (parse_number(optarg, 1, ROUNDS_MOST, &rounds))
				return fail(optarg, "--rounds takes a number from 1 to 1000");
			break;
		case 'x':
			if (parse_number(optarg, 1, 4, &ratio) || ratio == 3)
				return fail(optarg, "--ratio takes 1, 2 or 4");
			break;
		case 'o':
			only = optarg;
			break;
		case 'j':
			o->json = optarg;
			break;
		case 'z':
			o->zram = true;
			break;
		case 'l':
			o->list = true;
			break;
		case 'h':
			fputs(usage, stdout);
			exit(0);
		default:
			return fail(options_refused(argv, name),
				    "no such option, or its value is missing (see hmm bench --help)");
		}
	}
	if (optind < argc)
		return fail(argv[optind], "no such argument (see hmm bench --help)");
	o->b.npages = (mib & ~1ul) * (1 << 20) / DATA_PAGE; /* whole huge pages, of which there is a half */
	o->b.rounds = (unsigned)rounds;
	o->b.ratio = (unsigned)ratio;
	for (unsigned i = 0; !only && i < NR_FIGURES; i++)
		o->result[i].chosen = true;
	return only ? choose(o, only) : 0;
}

/* ------------------------------------------------------------------------ rounds */

static int prepare(struct options *o)
{
	struct bench *b = &o->b;

	if (sched_getaffinity(0, sizeof(b->cpus), &b->cpus))
		return fail("sched_getaffinity", strerror(errno));
	b->cpu = b->other = -1;
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &b->cpus))
			continue;
		if (b->cpu < 0)
			b->cpu = cpu;
		else if (b->other < 0)
			b->other = cpu;
	}
	for (unsigned i = 0; i < NR_FIGURES; i++) {
		struct result *r = &o->result[i];

		if (!r->chosen)
			continue;
		r->rounds = calloc(b->rounds, sizeof(*r->rounds));
		r->value = calloc(3 * b->rounds, sizeof(*r->value));
		if (!r->rounds || !r->value)
			return fail("out of memory", NULL);
		r->p99 = r->value + b->rounds;
		r->ratio = r->p99 + b->rounds;
		if (figures[i].measure == bench_run && figures[i].arg % RUN_FIGURES != RUN_CPU)
			b->work[figures[i].arg % RUN_FIGURES] = true;
		if (figures[i].measure == bench_run && figures[i].arg / RUN_FIGURES == RUN_ZRAM && !o->zram)
			r->skipped = strdup("changes settings of the machine while it runs: only with --zram");
	}
	/* CPU time alone is that of them all. */
	if (!b->work[RUN_FILL] && !b->work[RUN_READ] && !b->work[RUN_WRITE] && !b->work[RUN_UNIFORM])
		memset(b->work, true, sizeof(b->work));
	b->data = map_small(b->npages * DATA_PAGE);
	for (size_t i = 0; i < b->npages; i++)
		data_fill(b->data + i * DATA_PAGE, i, b->ratio);
	return 0;
}

static int measure(struct bench *b, unsigned i, struct result *r)
{
	struct bench_sample *s = &r->rounds[b->round - 1];
	int rc;

	if (!r->chosen || r->skipped)
		return 0;
	b->why[0] = 0;
	rc = figures[i].measure(b, figures[i].arg, s);
	if (rc < 0)
		return fail(figures[i].name, "memory is not what it must be");
	if (!rc && !(s->value > 0))
		rc = bench_skip(b, "no figure came of it");
	if (!rc)
		return 0;
	r->skipped = strdup(b->why);
	return r->skipped ? 0 : fail("out of memory", NULL);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double median(const double *v, unsigned n)
{
	return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

static void sum_up(struct options *o)
{
	unsigned n = o->b.rounds;

	for (unsigned i = 0; i < NR_FIGURES; i++) {
		struct result *r = &o->result[i];

		if (!r->chosen || r->skipped)
			continue;
		for (unsigned k = 0; k < NR_FIGURES && figures[i].floor; k++)
			if (!strcmp(figures[i].floor, figures[k].name) && o->result[k].chosen && !o->result[k].skipped)
				r->floor = &o->result[k];
		for (unsigned k = 0; k < n; k++) {
			r->value[k] = r->rounds[k].value;
			r->p99[k] = r->rounds[k].p99;
			if (r->floor)
				r->ratio[k] = r->rounds[k].value / r->floor->rounds[k].value;
		}
		qsort(r->value, n, sizeof(*r->value), by_value);
		qsort(r->p99, n, sizeof(*r->p99), by_value);
		qsort(r->ratio, n, sizeof(*r->ratio), by_value);
	}
}

/* ------------------------------------------------------------------------ output */

struct machine {
	char cpu[128];
	bool is_virtual;
	unsigned long mib;
	struct utsname u;
	double load;
};

static void look_at_machine(struct machine *m)
{
	FILE *f = fopen("/proc/cpuinfo", "re");
	char line[4096], *value;

	*m = (struct machine){.cpu = "unknown CPU"};
	while (f && fgets(line, sizeof(line), f)) {
		value = strchr(line, ':');
		if (!value)
			continue;
		value += 1 + strspn(value + 1, " ");
		value[strcspn(value, "\n")] = 0;
		if (!strncmp(line, "model name", 10))
			snprintf(m->cpu, sizeof(m->cpu), "%s", value);
		if (!strncmp(line, "flags", 5) && strstr(value, " hypervisor"))
			m->is_virtual = true;
	}
	if (f)
		fclose(f);
	m->mib = (unsigned long)sysconf(_SC_PHYS_PAGES) / 256;
	uname(&m->u);
	if (getloadavg(&m->load, 1) != 1)
		m->load = 0;
}

/* Nanoseconds as people write times. */
static const char *time_text(double ns, char *buf, size_t len)
{
	static const char *const unit[] = {"ns", "us", "ms", "s"};
	unsigned u = 0;

	while (ns >= 1000 && u < 3) {
		ns /= 1000;
		u++;
	}
	snprintf(buf, len, ns < 10 ? "%.2f %s" : ns < 100 ? "%.1f %s" : "%.0f %s", ns, unit[u]);
	return buf;
}

static void print_figure(const struct figure *f, const struct result *r, unsigned n)
{
	char text[4][32], spread[72], p99[48] = "", speed[32] = "";

	if (r->skipped) {
		printf("%-18s skipped: %s\n", f->name, r->skipped);
		return;
	}
	snprintf(spread, sizeof(spread), "(%s - %s)", time_text(r->value[0], text[0], sizeof(text[0])),
		 time_text(r->value[n - 1], text[1], sizeof(text[1])));
	if (r->p99[0] > 0)
		time_text(median(r->p99, n), p99, sizeof(p99));
	if (f->page)
		snprintf(speed, sizeof(speed), "%.2f", DATA_PAGE / median(r->value, n));
	printf("%-18s %-39s %9s %-22s %9s %6s", f->name, f->what,
	       time_text(median(r->value, n), text[2], sizeof(text[2])), spread, p99, speed);
	if (r->floor)
		printf("  %8.2f (%.2f - %.2f) x %s", median(r->ratio, n), r->ratio[0], r->ratio[n - 1], f->floor);
	putchar('\n');
}

static void print_table(const struct options *o, const struct machine *m)
{
	const struct bench *b = &o->b;

	printf("%ld x %s, of which %d may be used, %.0f GiB, %s, Linux %s, load %.1f at the start\n",
	       sysconf(_SC_NPROCESSORS_ONLN), m->cpu, CPU_COUNT(&b->cpus), (double)m->mib / 1024,
	       m->is_virtual ? "virtual machine" : "no hypervisor", m->u.release, m->load);
	printf("%zu MiB of %ux data, %u rounds; times are of one page, fault or access\n\n",
	       b->npages * DATA_PAGE >> 20, b->ratio, b->rounds);
	printf("%-18s %-39s %9s %-22s %9s %6s  %8s\n", "", "", "median", "(least - most)", "p99", "GB/s",
	       "times its floor or rival");
	for (unsigned i = 0; i < NR_FIGURES; i++)
		if (o->result[i].chosen)
			print_figure(&figures[i], &o->result[i], b->rounds);
	if (b->peak[RUN_HMM])
		printf("\nhmm run may have %.0f MiB of RAM in all, and had %.0f at most\n",
		       (double)b->budget / (1 << 20), (double)b->peak[RUN_HMM] / (1 << 20));
	if (b->peak[RUN_ZRAM])
		printf("zram swap had %.0f MiB of RAM in all at most%s\n", (double)b->peak[RUN_ZRAM] / (1 << 20),
		       (double)b->peak[RUN_HMM] > MORE_RAM * (double)b->budget
			       ? ": hmm run had so much more that the ratios are not of equal RAM"
			       : "");
}

static void json_list(FILE *f, const char *name, const struct result *r, unsigned n, size_t at)
{
	fprintf(f, ", \"%s\": [", name);
	for (unsigned k = 0; k < n; k++)
		fprintf(f, "%s%.7g", k ? ", " : "", *(const double *)((const char *)&r->rounds[k] + at));
	fputc(']', f);
}

static void json_figure(FILE *f, const struct figure *fig, const struct result *r, unsigned n)
{
	fprintf(f,
		"{\"name\": \"%s\", \"what\": \"%s\", \"unit\": \"ns\", \"median\": %.7g, \"least\": %.7g, \"most\": "
		"%.7g",
		fig->name, fig->what, median(r->value, n), r->value[0], r->value[n - 1]);
	json_list(f, "rounds", r, n, offsetof(struct bench_sample, value));
	if (r->p99[0] > 0) {
		json_list(f, "means", r, n, offsetof(struct bench_sample, mean));
		json_list(f, "p99s", r, n, offsetof(struct bench_sample, p99));
	}
	if (fig->page)
		fprintf(f, ", \"gb_per_s\": %.7g", DATA_PAGE / median(r->value, n));
	if (r->floor)
		fprintf(f, ", \"floor\": \"%s\", \"times\": {\"median\": %.7g, \"least\": %.7g, \"most\": %.7g}",
			fig->floor, median(r->ratio, n), r->ratio[0], r->ratio[n - 1]);
	fputc('}', f);
}

/* All in one line. */
static void print_json(FILE *f, const struct options *o, const struct machine *m)
{
	const struct bench *b = &o->b;
	bool first = true;

	fputs("{\"version\": \"" HMM_VERSION "\", \"machine\": {\"cpu\": ", f);
	cli_json_string(f, m->cpu);
	fputs(", \"kernel\": ", f);
	cli_json_string(f, m->u.release);
	fprintf(f, ", \"cpus\": %ld, \"used_cpus\": %d, \"mem_mib\": %lu, \"virtual\": %s, \"load\": %.2f}",
		sysconf(_SC_NPROCESSORS_ONLN), CPU_COUNT(&b->cpus), m->mib, m->is_virtual ? "true" : "false", m->load);
	fprintf(f, ", \"mib\": %zu, \"ratio\": %u, \"rounds\": %u", b->npages * DATA_PAGE >> 20, b->ratio, b->rounds);
	fprintf(f, ", \"budget_bytes\": %llu, \"hmm_peak_bytes\": %llu, \"zram_peak_bytes\": %llu",
		(unsigned long long)b->budget, (unsigned long long)b->peak[RUN_HMM],
		(unsigned long long)b->peak[RUN_ZRAM]);
	fputs(", \"figures\": [", f);
	for (unsigned i = 0; i < NR_FIGURES; i++) {
		if (!o->result[i].chosen || o->result[i].skipped)
			continue;
		fputs(first ? "" : ", ", f);
		first = false;
		json_figure(f, &figures[i], &o->result[i], b->rounds);
	}
	fputs("], \"skipped\": {", f);
	first = true;
	for (unsigned i = 0; i < NR_FIGURES; i++) {
		if (!o->result[i].chosen || !o->result[i].skipped)
			continue;
		fprintf(f, "%s\"%s\": ", first ? "" : ", ", figures[i].name);
		first = false;
		cli_json_string(f, o->result[i].skipped);
	}
	fputs("}}\n", f);
}

static int list(void)
{
	for (unsigned i = 0; i < NR_FIGURES; i++)
		printf("%-18s %s\n", figures[i].name, figures[i].what);
	return 0;
}

static void free_all(struct options *o)
{
	for (unsigned i = 0; i < NR_FIGURES; i++) {
		free(o->result[i].skipped);
		free(o->result[i].rounds);
		free(o->result[i].value);
	}
	free(o);
}

static int bench(struct options *o)
{
	struct machine m;
	FILE *json = NULL;
	int rc = 0;

	look_at_machine(&m);
	/* Now, not when all is over. */
	if (o->json && strcmp(o->json, "-") && !(json = fopen(o->json, "we")))
		return fail(o->json, strerror(errno));
	rc = prepare(o);
	for (o->b.round = 1; !rc && o->b.round <= o->b.rounds; o->b.round++) {
		for (unsigned k = 0; !rc && k < NR_FIGURES; k++) {
			unsigned i = o->b.round % 2 ? k : (unsigned)NR_FIGURES - 1 - k;

			rc = measure(&o->b, i, &o->result[i]);
		}
		if (!rc && isatty(2))
			fprintf(stderr, "round %u of %u\n", o->b.round, o->b.rounds);
	}
	if (!rc) {
		sum_up(o);
		if (!o->json || json)
			print_table(o, &m);
		if (o->json)
			print_json(json ? json : stdout, o, &m);
	}
	if (json && (ferror(json) | fclose(json)) && !rc)
		rc = fail(o->json, strerror(errno));
	return rc;
}

int hmm_bench_main(int argc, char **argv)
{
	struct options *o;
	int rc;

	if (argc > 1 && !strcmp(argv[1], "work"))
		return bench_work_main(argc - 1, argv + 1);
	if (argc > 1 && !strcmp(argv[1], "back"))
		return bench_back_main(argc - 1, argv + 1);
	o = calloc(1, sizeof(*o));
	if (!o)
		return fail("out of memory", NULL);
	rc = parse(o, argc, argv);
	if (!rc)
		rc = o->list ? list() : bench(o);
	free_all(o);
	if (!rc && (fflush(stdout) || ferror(stdout)))
		rc = fail("writing", strerror(errno));
	return rc;
}
