/* SPDX-License-Identifier: MIT */
/* The workloads of hmm bench as a program of their own: what runs is called "work", and has nothing else in it. */
#include "cli/bench/bench.h"

int main(int argc, char **argv)
{
	return bench_work_main(argc, argv);
}
