# SPDX-License-Identifier: Apache-2.0
# What `cmake --install` puts where, and where moged looks for the model pair it comes with.
if(TARGET moge_server)
  set_property(SOURCE ${CMAKE_SOURCE_DIR}/server/models.c APPEND PROPERTY COMPILE_DEFINITIONS
               MOGE_DATA_DIR="${CMAKE_INSTALL_FULL_DATADIR}/moged" MOGE_MODELS_DIR="${CMAKE_SOURCE_DIR}/models")
endif()

file(GLOB MODEL_FILES ${CMAKE_SOURCE_DIR}/models/*.gguf ${CMAKE_SOURCE_DIR}/models/*.md)
install(FILES ${MODEL_FILES} DESTINATION ${CMAKE_INSTALL_DATADIR}/moged)
# README.md among the models is their card.
install(DIRECTORY proto/ DESTINATION ${CMAKE_INSTALL_DATADIR}/moged/proto FILES_MATCHING PATTERN "*.proto")

# systemd's own places, whatever the prefix is: a unit elsewhere would not be found.
set(MOGE_SYSTEMD_DIR "lib/systemd/system" CACHE STRING "Where the unit file goes, relative to the prefix")
set(MOGE_SYSUSERS_DIR "lib/sysusers.d" CACHE STRING "Where the sysusers file goes, relative to the prefix")
install(FILES systemd/moged.sysusers DESTINATION ${MOGE_SYSUSERS_DIR} RENAME moged.conf)
install(FILES systemd/moged.conf DESTINATION /etc/moged)
install(FILES docs/OPERATIONS.md docs/PROTOCOLS.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(FILES systemd/moged.service DESTINATION ${MOGE_SYSTEMD_DIR})
# The prefix may be given as late as `cmake --install --prefix`, and the unit must start what was installed.
install(CODE "
  set(unit_path \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${MOGE_SYSTEMD_DIR}/moged.service\")
  file(READ \"\${unit_path}\" unit)
  string(REPLACE \"/usr/bin/moged\" \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_BINDIR}/moged\" unit \"\${unit}\")
  file(WRITE \"\${unit_path}\" \"\${unit}\")
")
