/* SPDX-License-Identifier: MIT */
/* The machine's pool of huge pages, for tests that need some and put back what there was. */
#ifndef TEST_HUGETLB_H
#define TEST_HUGETLB_H

#include <stdio.h>

/* @want pages from here on; less than 0: leave it.  Returns how many there are where none was wanted, or -1. */
static inline int hugetlb_pages(int want)
{
	FILE *f = fopen("/proc/sys/vm/nr_hugepages", want < 0 ? "r" : "w");
	int n = -1;

	if (!f)
		return -1;
	if (want < 0 && fscanf(f, "%d", &n) != 1)
		n = -1;
	if (want >= 0)
		fprintf(f, "%d\n", want);
	fclose(f);
	return n;
}

#endif
