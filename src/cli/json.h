/* SPDX-License-Identifier: MIT */
/* Strings of JSON, as the subcommands print them. */
#ifndef HMM_CLI_JSON_H
#define HMM_CLI_JSON_H

#include <stdio.h>

static inline void cli_json_string(FILE *f, const char *s)
{
	fputc('"', f);
	for (; *s; s++) {
		if (*s == '"' || *s == '\\')
			fprintf(f, "\\%c", *s);
		else if ((unsigned char)*s < 0x20)
			fprintf(f, "\\u%04x", *s);
		else
			fputc(*s, f);
	}
	fputc('"', f);
}

#endif
