# SPDX-License-Identifier: Apache-2.0
# The rules of the house, checked over the source tree and over the built libraries.
set(TIDY /usr/bin/python3 ${CMAKE_CURRENT_LIST_DIR}/tidy.py)
add_test(NAME tidy/self_test COMMAND ${TIDY} --self-test)
add_test(NAME tidy/tree COMMAND ${TIDY} ${CMAKE_SOURCE_DIR})
set(TIDY_LIBRARIES "")
foreach(library ${ALL_LIBRARIES})
  list(APPEND TIDY_LIBRARIES $<TARGET_FILE:${library}>)
endforeach()
add_test(NAME tidy/symbols COMMAND ${TIDY} --symbols ${CMAKE_NM} ${TIDY_LIBRARIES})
set_tests_properties(tidy/self_test tidy/tree tidy/symbols PROPERTIES LABELS unit TIMEOUT 120)
