# SPDX-License-Identifier: Apache-2.0
# moge_proto: protobuf-c code made from proto/ at build time.
#
# protobuf-c keeps a proto3 string as a C string and so cuts it at a NUL byte, which prompts and outputs of a
# byte-level model may well contain.  `string` and `bytes` are the same on the wire, so the C side is generated
# from copies in which every string field is declared as bytes; codec.c checks UTF-8 where it matters.
find_program(PROTOC_C protoc-c REQUIRED)

set(PROTO_OUT ${CMAKE_BINARY_DIR}/generated)
set(PROTO_SOURCES "")
foreach(name moge/v1/moge grpc/health/v1/health)
  set(source ${CMAKE_SOURCE_DIR}/proto/${name}.proto)
  set(copy ${PROTO_OUT}/proto/${name}.proto)
  set_property(DIRECTORY ${CMAKE_SOURCE_DIR} APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${source})
  file(READ ${source} text)
  string(REGEX REPLACE "([ \n])string ([a-z_]+ = [0-9])" "\\1bytes \\2" text "${text}")
  file(CONFIGURE OUTPUT ${copy} CONTENT "${text}" @ONLY NEWLINE_STYLE UNIX)
  add_custom_command(
    OUTPUT ${PROTO_OUT}/${name}.pb-c.c ${PROTO_OUT}/${name}.pb-c.h
    COMMAND ${PROTOC_C} --proto_path=${PROTO_OUT}/proto --c_out=${PROTO_OUT} ${name}.proto
    DEPENDS ${copy} VERBATIM)
  list(APPEND PROTO_SOURCES ${PROTO_OUT}/${name}.pb-c.c)
endforeach()

add_library(moge_proto STATIC ${PROTO_SOURCES})
target_compile_options(moge_proto PRIVATE -w)
target_include_directories(moge_proto SYSTEM PUBLIC ${PROTO_OUT})
target_link_libraries(moge_proto PUBLIC PkgConfig::PROTOBUFC)
