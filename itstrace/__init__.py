"""What happened to my interrupt?"""
