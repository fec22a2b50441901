/* SPDX-License-Identifier: MIT */
/* The subcommands of hmm.  Each gets its own argv[0] and returns an exit status. */
#ifndef HMM_CLI_CLI_H
#define HMM_CLI_CLI_H

int hmm_run_main(int argc, char **argv);
int hmm_stat_main(int argc, char **argv);
int hmm_serve_main(int argc, char **argv);
int hmm_doctor_main(int argc, char **argv);
int hmm_bench_main(int argc, char **argv);

#endif
