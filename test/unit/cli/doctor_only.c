/* SPDX-License-Identifier: MIT */
/* hmm doctor alone, so that its test needs nothing else of hmm. */
#include "cli/cli.h"

int main(int argc, char **argv)
{
	return hmm_doctor_main(argc, argv);
}
