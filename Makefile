# Nacelle's build. `make help` says what there is.
#
#   make                        build/nacelle
#   make SAN=address,undefined  build-asan/nacelle, all of it instrumented but translated code
#   make SAN=thread             build-tsan/nacelle
#   make CC=clang               with clang (the build directory notices and compiles again)
#
# Every *.c and *.S below common/, vmm/ and cli/ is found by itself; there is no list to keep.

MAKEFLAGS += --no-builtin-rules --no-print-directory
.SUFFIXES:
.DELETE_ON_ERROR:
SHELL := /bin/bash

ifeq ($(origin CC),default)
CC := gcc
endif
AR ?= ar
NM ?= nm
PREFIX ?= /usr/local
DESTDIR ?=
V ?= 0
ifeq ($(V),0)
Q := @
say = @printf '  %-8s %s\n' '$(1)' '$(2)'
else
Q :=
say = @:
endif

.PHONY: all
all: nacelle

include mk/build.mk
include mk/test.mk
include mk/lint.mk
include mk/install.mk
